"""Another surface's conversation as OpenAI's: the same rules hold for it, the same features work for it."""

from typing import Any

import msgspec

from millrace.errors import Failure
from services.gateway.desk import Ask
from services.gateway.http import fault
from services.gateway.surfaces.openai import admit, wire
from services.gateway.visit import Visit


def ask(fields: dict[str, Any], names: dict[str, str], visit: Visit) -> Ask:
    """`fields` are those of `/v1/chat/completions`. What is wrong with one is said by the client's own
    word for it, as `names` has it."""
    try:
        return admit.chat(wire.read(wire.ChatBody, msgspec.json.encode(fields)), visit)
    except Failure as failure:
        raise fault.renamed(failure, names) from None
