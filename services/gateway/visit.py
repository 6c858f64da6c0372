"""One HTTP request as seen from outside: its id, its trace and the headers every response carries."""

import re
import secrets
import time
from dataclasses import dataclass, field

from litestar.types import Scope

from millrace.keys import ANYONE, Tenant
from millrace.telemetry import child_of, valid_traceparent
from services.gateway.allowance import Allowance

SANE_ID = re.compile(rb"[\x20-\x7e]{1,200}")


@dataclass(slots=True)
class Visit:
    request_id: bytes = field(default_factory=lambda: b"req_" + secrets.token_hex(16).encode())
    traceparent: str = field(default_factory=lambda: child_of(""))
    began: float = field(default_factory=time.monotonic)
    deadline_s: float = 120.0
    allowance: Allowance | None = None  # none: there are no keys

    @classmethod
    def of(cls, scope: Scope) -> "Visit":
        """The request's visit, which begins with the first call."""
        state = scope["state"]
        if "visit" not in state:
            state["visit"] = cls.from_headers(dict(reversed(list(scope["headers"]))))
        visit: Visit = state["visit"]
        return visit

    @classmethod
    def from_headers(cls, headers: dict[bytes, bytes]) -> "Visit":
        visit = cls()
        given = headers.get(b"x-request-id", b"")
        if SANE_ID.fullmatch(given):
            visit.request_id = given
        if parent := headers.get(b"traceparent"):
            visit.traceparent = child_of(valid_traceparent(parent.decode("latin-1")))
        return visit

    @property
    def tenant(self) -> Tenant:
        return self.allowance.tenant if self.allowance else ANYONE

    def headers(self) -> list[tuple[bytes, bytes]]:
        now = time.monotonic()
        return [
            (b"x-request-id", self.request_id),
            (b"openai-processing-ms", b"%d" % ((now - self.began) * 1000)),
            (b"traceparent", self.traceparent.encode()),
            *(self.allowance.headers(now) if self.allowance else ()),
        ]
