"""When the reader of a live request is woken."""

import asyncio
import gc
import weakref

import pytest

from millrace import messages as m
from millrace.errors import Code, Failure
from services.gateway.ongoing import MANY, Ongoing
from services.gateway.owner.entry import Entry
from services.gateway.owner.ledger import Ledger


class Live:
    """A request that an engine has, and a patient reader of it."""

    def __init__(self) -> None:
        self.ledger = Ledger("gw")
        self.entry = Entry(m.Prompt("gw-1", 1, "sim", m.Text("x"), m.Sampling(1)), "sim", 0.0, 99.0)
        self.answer = Ongoing(self.entry, lambda request: None)
        self.answer.patient = True
        self.ledger.open(self.entry)
        self.ledger.claim(m.Claim("gw-1", "e1", "lease", 0), 1.0)

    def say(self, index: int, *, finish: m.Finish = "") -> None:
        said = m.Said("gw-1", 1, index, [7], ["x"], finish)
        self.ledger.delta(m.Delta("e1", "d", [said]), 2.0 + index)


async def test_a_patient_reader_is_woken_at_the_end() -> None:
    """Not for each token, and then it has all of them."""
    live = Live()
    live.say(0)
    live.say(1)
    before = live.answer.news.is_set()
    live.say(2, finish="stop")

    assert (False, True) == (before, live.answer.news.is_set())
    assert 3 == len(await live.answer.pieces())


async def test_a_long_answer_is_not_read_in_one_go() -> None:
    """Its reader is woken when many tokens are there."""
    live = Live()
    for index in range(MANY - 1):
        live.say(index)
    before = live.answer.news.is_set()
    live.say(MANY - 1)

    assert (False, True) == (before, live.answer.news.is_set())


async def test_a_patient_reader_hears_of_a_failure() -> None:
    """At once, and with what was said before."""
    live = Live()
    live.say(0)
    reading = asyncio.ensure_future(live.answer.pieces())
    live.ledger.cancel("gw-1", Failure(Code.DEADLINE_EXCEEDED, "late"))

    assert ["x"] == [piece.text for piece in await reading]
    with pytest.raises(Failure, match="late"):
        await live.answer.pieces()


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_has_ended_goes_at_once(cancelled: bool) -> None:
    """A prompt may have megabytes: it does not wait for the collector, which counts objects and no bytes."""
    live = Live()
    live.entry.on_end = live.answer.cancel
    answer = weakref.ref(live.answer)
    gc.disable()
    try:
        if cancelled:
            live.ledger.cancel("gw-1", Failure(Code.CANCELLED, "enough"))
        else:
            live.say(0, finish="stop")
        there = answer() is not None
        del live

        assert there and answer() is None
    finally:
        gc.enable()
