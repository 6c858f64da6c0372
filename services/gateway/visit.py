"""One HTTP request as seen from outside: its id, its trace, what came of it, and the headers that it gets."""

import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from litestar.types import Message, Scope

from millrace.errors import Failure
from millrace.keys import ANYONE, Tenant
from millrace.telemetry import child_of, span_of, trace_of, valid_traceparent, valid_tracestate
from services.gateway.allowance import Allowance

SANE_ID = re.compile(rb"[\x20-\x7e]{1,200}")
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
STALL_S = 0.05
"""A client that keeps up never makes a write wait so long."""


@dataclass(slots=True)
class Visit:
    request_id: bytes = field(default_factory=lambda: b"req_" + secrets.token_hex(16).encode())
    traceparent: str = field(default_factory=lambda: child_of("", sampled=False))
    began: float = field(default_factory=time.monotonic)
    deadline_s: float = 120.0
    allowance: Allowance | None = None  # none: there are no keys
    operator: bool = False  # whether it may see what is of all tenants together
    queue: tuple[int, int] = (0, 0)  # when it was queued: its position, and milliseconds to wait; -1: unknown
    parent: str = ""  # the client's span
    tracestate: str = ""
    method: str = ""
    route: str = ""  # as it is declared, never as the client wrote it
    whole: bool = False  # what it asks for is answered in one piece
    # what came of it
    status: int = 0  # 0: no answer has begun
    failure: Failure | None = None  # before the answer began
    first_at: float = 0.0  # the answer's first byte
    left_at: float = 0.0
    sent: int = 0  # bytes of the answer's body
    stalls: int = 0  # writes that waited for the client
    stalled_s: float = 0.0

    @classmethod
    def of(cls, scope: Scope) -> "Visit":
        """The request's visit. One begins here if nobody watches."""
        state = scope["state"]
        if "visit" not in state:
            cls.begin(scope, sampled=False)
        visit: Visit = state["visit"]
        return visit

    @classmethod
    def begin(cls, scope: Scope, *, sampled: bool) -> "Visit":
        headers = dict(reversed(list(scope["headers"])))  # of several with one name, the first
        parent = valid_traceparent(headers.get(b"traceparent", b"").decode("latin-1"))
        visit = cls(traceparent=child_of(parent, sampled=sampled))
        given = headers.get(b"x-request-id", b"")
        if SANE_ID.fullmatch(given):
            visit.request_id = given
        if parent:
            visit.parent = span_of(parent)
            visit.tracestate = valid_tracestate(headers.get(b"tracestate", b"").decode("latin-1"))
        method = str(scope.get("method", ""))
        visit.method = method if method in METHODS else "_OTHER"
        scope["state"]["visit"] = visit
        return visit

    @property
    def tenant(self) -> Tenant:
        return self.allowance.tenant if self.allowance else ANYONE

    def said(self, message: Message, began: float, now: float) -> None:
        """A part of the answer was sent; the time in between is what the client made it wait."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if message["type"] == "http.response.body":
            self.first_at = self.first_at or began
            self.sent += len(message["body"])
            if now - began >= STALL_S:
                self.stalls += 1
                self.stalled_s += now - began

    def headers(self) -> list[tuple[bytes, bytes]]:
        now = time.monotonic()
        return [
            (b"x-request-id", self.request_id),
            (b"openai-processing-ms", b"%d" % ((now - self.began) * 1000)),
            (b"traceparent", self.traceparent.encode()),
            (b"x-trace-id", trace_of(self.traceparent).encode()),
            *(self.allowance.headers(now) if self.allowance else ()),
            *self._queue_headers(),
        ]

    def _queue_headers(self) -> Iterator[tuple[bytes, bytes]]:
        position, estimate_ms = self.queue
        if position:
            yield b"x-millrace-queue-position", b"%d" % position
            if estimate_ms >= 0:
                yield b"x-millrace-queue-estimate-ms", b"%d" % estimate_ms
