"""Who may come in: the one place where a request's key is looked at, before any surface sees it."""

import logging
import time
from pathlib import Path

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from millrace.errors import Code, Failure
from millrace.keys import Keys, Tenant, file, read
from services.gateway import page
from services.gateway.allowance import Allowance
from services.gateway.visit import Visit

OPEN = frozenset({"/", "/livez", "/readyz", "/health", *page.FILES})
"""For those who watch the service, and have no key; and the page, where a browser's user types one in."""

METRICS = "/metrics"
"""It tells of all tenants together: what an operator's key is for, and a tenant's is not."""

TIMEOUT = b"x-request-timeout-ms"

log = logging.getLogger("millrace.gateway")


class Gate:
    def __init__(self, keys: str, deadline_s: float, *, metrics_open: bool = False):
        """`keys` as the setting has it: a file, or JSON itself, or nothing. Raises SettingError."""
        self._metrics_open = metrics_open
        self._deadline_s = deadline_s
        self._file = file(keys)
        self._stamp = _stamp(self._file) if self._file else ()
        self._allowances: dict[str, Allowance] = {}
        self._gateways = 1
        self._keys = read(keys)

    @property
    def closed(self) -> bool:
        """Whether keys are asked for."""
        return self._keys is not None

    @property
    def tenants(self) -> dict[str, Tenant]:
        return self._keys.tenants if self._keys else {}

    def refresh(self, gateways: int, now: float) -> bool:
        """Called every so often: a key file that has changed counts from now on. A broken one does not.
        Whether there is something new."""
        before = self._keys
        if self._file and (stamp := _stamp(self._file)) != self._stamp:
            self._stamp = stamp
            try:
                self._keys = Keys.parse(self._file.read_text(encoding="utf-8"))
                log.info("read %s again", self._file)
            except (OSError, ValueError) as error:
                log.error("%s cannot be used, what it said before goes on: %s", self._file, error)
        self._gateways = max(gateways, 1)
        for name, allowance in self._allowances.items():
            allowance.change(self.tenants.get(name, allowance.tenant), self._gateways, now)
        return self._keys is not before

    def allowance(self, key: bytes, now: float) -> Allowance:
        """Of the tenant whose key it is."""
        assert self._keys
        tenant = self._keys.owner(key) if key else None
        if tenant is None:
            said = "This is not a valid API key." if key else "An API key is needed, as a bearer token."
            if key and self._keys.operates(key):
                said = f"This is an operator's key, for {METRICS} alone."
            raise Failure(Code.AUTHENTICATION, said)
        found = self._allowances.get(tenant.name)
        if found is None:
            found = self._allowances[tenant.name] = Allowance(tenant, now)
            found.change(tenant, self._gateways, now)
        return found

    def enter(self, scope: Scope) -> None:
        """Let it in, and write down who it is and how long it may take; or raise Failure."""
        visit = Visit.of(scope)
        headers = dict(reversed(list(scope["headers"])))
        visit.operator = self._keys is None or (scope["path"] == METRICS and self._may_see(_key(headers)))
        if not visit.operator and scope["path"] not in OPEN:
            now = time.monotonic()
            visit.allowance = self.allowance(_key(headers), now)
            if scope["type"] == ScopeType.HTTP and scope["method"] == "POST":
                visit.allowance.request(now)
        visit.deadline_s = _deadline(headers.get(TIMEOUT), self._deadline_s)

    def _may_see(self, key: bytes) -> bool:
        return self._metrics_open or (self._keys is not None and self._keys.operates(key))

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def inside(scope: Scope, receive: Receive, send: Send) -> None:
            self.enter(scope)
            await app(scope, receive, send)

        return inside


def _stamp(file: Path) -> tuple[int, ...]:
    """Another one whenever the file was written to, or replaced."""
    try:
        stat = file.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _key(headers: dict[bytes, bytes]) -> bytes:
    """OpenAI's clients send it as a bearer token, Anthropic's as x-api-key."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return (
        key.strip() if scheme.lower() == b"bearer" and key.strip() else headers.get(b"x-api-key", b"").strip()
    )


def _deadline(given: bytes | None, most: float) -> float:
    if given is None:
        return most
    if not given.isdigit() or len(given) > 12 or int(given) < 1:
        name = TIMEOUT.decode()
        raise Failure(Code.INVALID_REQUEST, f"'{name}' is a number of milliseconds, 1 or more.", param=name)
    return min(int(given) / 1000, most)
