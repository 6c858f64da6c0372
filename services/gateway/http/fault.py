"""A `Failure` as a client reads it: each surface has its own form."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from millrace.errors import Code, Failure

DRAINING = "This gateway is shutting down: send the request again."
DEFECT = "The server failed to process the request."

MESSAGES = "/v1/messages"
"""Below this path everything is Anthropic's."""

MODELS = "/v1/models"
"""Below this path all is for clients of both, and a header tells them apart."""

VERSION = "anthropic-version"
"""A header that every client of Anthropic's API sends."""


def body(failure: Failure, path: str = "", *, versioned: bool = False) -> bytes:
    """In the form of the surface that this path belongs to, OpenAI's where it is nobody's. `versioned`:
    the request has Anthropic's header."""
    if path.startswith(MESSAGES) or (versioned and path.startswith(MODELS)):
        return msgspec.json.encode(anthropic(failure))
    if path == "/" or path.startswith("/api/"):
        return msgspec.json.encode(ollama(failure))
    return msgspec.json.encode(openai(failure))


def openai(failure: Failure) -> dict[str, Any]:
    return {
        "error": {
            "message": failure.message,
            "type": failure.meaning.type,
            "param": failure.param,
            "code": failure.code.value,
        }
    }


ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic(failure: Failure) -> dict[str, Any]:
    status = failure.meaning.status
    kind = ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


def ollama(failure: Failure) -> dict[str, Any]:
    return {"error": failure.message}


def headers(failure: Failure) -> list[tuple[bytes, bytes]]:
    """What tells an SDK whether to try again, and when. It waits for the milliseconds if it knows them."""
    if not failure.meaning.retry:
        return [(b"x-should-retry", b"false")]
    wait = failure.retry_after or 1.0
    return [
        (b"x-should-retry", b"true"),
        (b"retry-after", b"%d" % max(1, math.ceil(wait))),
        (b"retry-after-ms", b"%d" % max(1, math.ceil(wait * 1000))),
    ]


def renamed(failure: Failure, names: Mapping[str, str]) -> Failure:
    """The same failure, by the client's name for the parameter: `names` has it by OpenAI's."""
    place = (failure.param or "").split(".")[0]
    ours = place if place in names else place.split("[")[0]
    theirs = names.get(ours)
    if failure.param is None or theirs is None:
        return failure
    message = failure.message.replace(f"'{ours}", f"'{theirs}")
    return Failure(failure.code, message, param=theirs, retry_after=failure.retry_after)


def bare(failure: Failure) -> Failure:
    """Without the way it came: those frames hold the request with its body, and that holds the failure."""
    failure.__cause__ = failure.__context__ = None
    return failure.with_traceback(None)


def of(error: BaseException) -> Failure:
    """The failure a client is told of. What is not one already is a defect, whose text stays inside."""
    return error if isinstance(error, Failure) else Failure(Code.INTERNAL, DEFECT)
