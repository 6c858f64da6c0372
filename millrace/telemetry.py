"""What travels with a message beside its content: whose it is, which trace, how long it may take.

Carried in NATS headers, as W3C trace context has it, so that any hop can join the trace.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from millrace.spans import new_id, new_trace

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


def child_of(traceparent: str, *, sampled: bool) -> str:
    """A new span in that trace, or the first of a new one. Whether it is recorded is our decision alone."""
    trace = traceparent[3:35] or new_trace()
    return f"00-{trace}-{new_id()}-0{int(sampled)}"


def is_sampled(traceparent: str) -> bool:
    return traceparent.endswith("1")


def trace_of(traceparent: str) -> str:
    return traceparent[3:35]


def span_of(traceparent: str) -> str:
    return traceparent[36:52]


_STATE_MEMBER = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}")


def valid_tracestate(value: str) -> str:
    """The value if it is well-formed and of the length that everybody must pass on, else nothing."""
    members = [member.strip() for member in value.split(",")] if len(value) <= 512 else []
    good = 0 < len(members) <= 32 and all(_STATE_MEMBER.fullmatch(member) for member in members)
    return ",".join(members) if good else ""
