"""What travels with a message beside its content: whose it is, which trace, how long it may take.

Carried in NATS headers, as W3C trace context has it, so that any hop can join the trace.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Context:
    request: str = ""
    traceparent: str = ""
    left_ms: int = 0  # of the request's deadline when this was sent; 0: not said

    def headers(self) -> dict[str, str]:
        headers = {"Mr-Request": self.request, "Mr-Left-Ms": str(self.left_ms)}
        if self.traceparent:
            headers["traceparent"] = self.traceparent
        return headers

    @classmethod
    def of(cls, headers: Mapping[str, str] | None) -> "Context":
        if not headers:
            return _NOTHING
        left = headers.get("Mr-Left-Ms", "0")
        return cls(
            headers.get("Mr-Request", ""),
            valid_traceparent(headers.get("traceparent", "")),
            int(left) if left.isascii() and left.isdigit() and len(left) < 12 else 0,
        )


_NOTHING = Context()


def valid_traceparent(value: str) -> str:
    """The value if it is well-formed, else nothing: a hostile header starts no trace of its own shape."""
    return value if TRACEPARENT.fullmatch(value) else ""


def child_of(traceparent: str) -> str:
    """A new span in that trace, or the first of a new, unsampled-by-the-client one."""
    span = secrets.token_hex(8)
    if traceparent:
        return f"{traceparent[:36]}{span}{traceparent[52:]}"
    return f"00-{secrets.token_hex(16)}-{span}-01"
