"""One HTTP request as seen from outside: its id, its trace and the headers every response carries."""

import re
import secrets
import time
from dataclasses import dataclass, field

from litestar.types import Scope

from millrace.telemetry import child_of, valid_traceparent

SANE_ID = re.compile(rb"[\x20-\x7e]{1,200}")


@dataclass(slots=True)
class Visit:
    request_id: bytes = field(default_factory=lambda: b"req_" + secrets.token_hex(16).encode())
    traceparent: str = field(default_factory=lambda: child_of(""))
    began: float = field(default_factory=time.monotonic)

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

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"x-request-id", self.request_id),
            (b"openai-processing-ms", b"%d" % ((time.monotonic() - self.began) * 1000)),
            (b"traceparent", self.traceparent.encode()),
        ]
