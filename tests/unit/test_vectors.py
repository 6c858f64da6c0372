"""Several texts of one request: how many at once, in which order they are told, and how they end."""

import asyncio
import json
import struct

import msgspec
import pytest

from millrace.errors import Code, Failure
from millrace.keys import Tenant
from millrace.messages import Text
from services.gateway.allowance import Allowance
from services.gateway.desk import Ask, Model, Piece
from services.gateway.surfaces import vectors
from services.gateway.surfaces.vectors import WINDOW, Asks, Found, Vector
from services.gateway.visit import Visit
from tests.kit.desk import ScriptedDesk, until

MODEL = Model("m", 64, 0, vectors=2)


def piece(*values: float) -> list[Piece]:
    return [Piece(0, "", "stop", vector=struct.pack(f"<{len(values)}f", *values))]


def asked(count: int, visit: Visit | None = None) -> Asks:
    return vectors.asks(MODEL, [f"{n}" for n in range(count)], visit or Visit())


def number(ask: Ask) -> int:
    assert isinstance(ask.input, Text)
    return int(ask.input.text)


async def found(desk: ScriptedDesk, asks: Asks) -> Found:
    return await asyncio.wait_for(vectors.found(desk, asks, Vector.told), 60)


async def test_they_are_told_in_the_order_of_the_texts() -> None:
    """Whichever is ready first."""
    desk = ScriptedDesk()
    later = asyncio.Event()

    async def opening(ask: Ask) -> None:
        desk.script = [*([later] if number(ask) == 0 else []), piece(number(ask), 1.0)]
        if number(ask) == 39:
            later.set()

    desk.opening = opening
    made = await found(desk, asked(40))

    assert [float(n) for n in range(40)] == [json.loads(msgspec.json.encode(told))[0] for told in made.told]
    assert 40 * 7 == made.tokens


@pytest.mark.parametrize(("concurrency", "open_", "most"), [(0, 0, WINDOW), (5, 0, 5), (5, 3, 2), (5, 5, 1)])
async def test_not_more_at_once_than_may_be(concurrency: int, open_: int, most: int) -> None:
    """A request of many texts is no flood, and is not refused for being more than its tenant may have."""
    visit = Visit(allowance=Allowance(Tenant(name="t", concurrency=concurrency), 0.0))
    assert visit.allowance
    visit.allowance.open = open_
    go = asyncio.Event()
    desk = ScriptedDesk(go, piece(1.0, 0.0))
    work = asyncio.ensure_future(found(desk, asked(60, visit)))
    await asyncio.wait_for(until(lambda: len(desk.answers) >= most), 60)
    for _ in range(20):
        await asyncio.sleep(0)
    at_once = len(desk.answers)
    go.set()
    await work

    assert most == at_once
    assert 60 == len(desk.answers)


async def test_a_failure_of_one_lets_go_of_all() -> None:
    """It is told with the name of its text, and nothing else is begun."""
    desk = ScriptedDesk(asyncio.Event())

    async def opening(ask: Ask) -> None:
        if number(ask) == 3:
            raise Failure(Code.CONTEXT_LENGTH_EXCEEDED, "too long", param="prompt")

    desk.opening = opening
    with pytest.raises(Failure, match="too long") as failed:
        await found(desk, asked(60))

    assert "input[3]" == failed.value.param
    assert WINDOW == len(desk.asks)
    assert all(answer.cancelled.is_set() for answer in desk.answers)


async def test_the_deadline_is_the_requests() -> None:
    """However many of its texts were still to come."""
    desk = ScriptedDesk(0.06, piece(1.0, 0.0))
    with pytest.raises(Failure, match="of 60 vectors") as failed:
        await found(desk, asked(60, Visit(deadline_s=0.1)))

    assert Code.DEADLINE_EXCEEDED is failed.value.code
    assert all(answer.cancelled.is_set() for answer in desk.answers)


def test_a_cut_vector_has_the_length_one() -> None:
    """And a whole one stays as it came, to the bit."""
    data = struct.pack("<4f", 3.0, 4.0, 12.0, 0.1)

    assert [0.6, 0.8] == pytest.approx(json.loads(bytes(Vector(data).told(2))))
    assert list(struct.unpack("<4f", data)) == json.loads(bytes(Vector(data).told(4)))
    assert [0.0, 0.0] == json.loads(bytes(Vector(bytes(16)).told(2)))
