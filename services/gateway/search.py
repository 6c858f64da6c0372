"""Whose request is this? The other gateways are asked: one has it, or all of them say that they have not.

Where one of them says nothing, nobody knows: it may have the request, and go on with it.
"""

import asyncio
from collections.abc import Iterable

from msgspec import structs

from millrace.bus import Bus, NoAnswer, NoResponder
from millrace.errors import Code, Failure
from millrace.messages import Find, Found, Gone
from millrace.subjects import FIND

FIND_S = 1.5
"""A gateway answers within a millisecond, or once it is let run; one of an older version never says Gone."""

AGAIN_S = 1.0


async def search(bus: Bus, wanted: Find, gateways: Iterable[str], within_s: float = FIND_S) -> Found | None:
    """`gateways`: those that may be there. Whoever has the request answers, known or not."""
    each = [structs.replace(wanted, gateway=id) for id in gateways]
    asks = [asyncio.create_task(_asked(bus, find, within_s)) for find in each]
    silent = False
    try:
        for answer in asyncio.as_completed(asks):
            if isinstance(found := await answer, Found):
                return found
            silent |= found is None
    finally:
        for ask in asks:
            ask.cancel()
    if silent:
        raise Failure(
            Code.UNAVAILABLE,
            "Another gateway may have this request, and does not answer.",
            retry_after=AGAIN_S,
        )
    return None


async def _asked(bus: Bus, wanted: Find, within_s: float) -> Found | Gone | None:
    try:
        answer: Found | Gone = await bus.request(FIND.to(""), wanted, Found | Gone, within_s)
    except (NoResponder, NoAnswer):
        return None
    return answer
