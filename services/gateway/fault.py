"""A `Failure` as OpenAI clients read it."""

import math

import msgspec

from millrace.errors import Code, Failure

DRAINING = "This gateway is shutting down: send the request again."
DEFECT = "The server failed to process the request."


def body(failure: Failure) -> bytes:
    return msgspec.json.encode(
        {
            "error": {
                "message": failure.message,
                "type": failure.meaning.type,
                "param": failure.param,
                "code": failure.code.value,
            }
        }
    )


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


def of(error: BaseException) -> Failure:
    """The failure a client is told of. What is not one already is a defect, whose text stays inside."""
    return error if isinstance(error, Failure) else Failure(Code.INTERNAL, DEFECT)
