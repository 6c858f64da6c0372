"""Another surface's conversation as OpenAI's: the same rules hold for it, the same features work for it."""

from typing import Any

import msgspec

from millrace.errors import Failure
from services.gateway import admit, wire
from services.gateway.desk import Ask
from services.gateway.visit import Visit


def ask(fields: dict[str, Any], names: dict[str, str], visit: Visit) -> Ask:
    """`fields` are those of `/v1/chat/completions`. What is wrong with one is said by the client's own
    word for it, as `names` has it."""
    try:
        return admit.chat(wire.read(wire.ChatBody, msgspec.json.encode(fields)), visit)
    except Failure as failure:
        raise called(failure, names) from None


def called(failure: Failure, names: dict[str, str]) -> Failure:
    """The same failure, by the client's name for the parameter."""
    ours = (failure.param or "").split(".")[0].split("[")[0]
    theirs = names.get(ours)
    if failure.param is None or theirs is None:
        return failure
    message = failure.message.replace(f"'{ours}", f"'{theirs}")
    return Failure(failure.code, message, param=theirs, retry_after=failure.retry_after)
