"""How long a gateway asks for a job to be made, and what it hears in the end."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from millrace import messages as m
from millrace.bus import Bus, NoAnswer, NoResponder
from millrace.errors import Code, Failure
from services.gateway.owner.entry import Entry
from services.gateway.tokenizers import Tokenizers

ADMITTED = m.Admitted("gw-1", 7, 3, 16)


class Answering(Bus):
    """What is asked gets these answers, one after the other, and the last of them for ever."""

    def __init__(self, *answers: m.Message | Exception, then: Callable[[], None] = lambda: None):
        self.asked: list[m.Message] = []
        self._script = list(answers)
        self._after = then

    async def request(self, subject: str, message: m.Message, *_: Any) -> m.Message:
        self.asked.append(message)
        answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        self._after()
        if isinstance(answer, Exception):
            raise answer
        return answer


def refused(code: Code) -> m.Refused:
    return m.Refused("gw-1", code, "it says why")


def entry(deadline_s: float = 60.0) -> Entry:
    now = time.monotonic()
    prompt = m.Prompt("gw-1", 1, "sim", m.Text("x"), m.Sampling(1))
    return Entry(prompt, "sim", now, now + deadline_s)


async def test_silence_is_answered_by_asking_again() -> None:
    """Whether nobody was there, nobody answered, or the queue took nothing just then."""
    bus = Answering(NoResponder(), NoAnswer(), refused(Code.UNAVAILABLE), ADMITTED)
    wanted = entry()

    assert ADMITTED == await Tokenizers(bus, 3).admit(wanted, wanted.prompt, None)
    assert [wanted.prompt] * 4 == bus.asked


async def test_what_is_refused_for_good_is_not_asked_again() -> None:
    bus = Answering(refused(Code.CONTEXT_LENGTH_EXCEEDED))
    wanted = entry()

    with pytest.raises(Failure, match="it says why") as told:
        await Tokenizers(bus, 1).admit(wanted, wanted.prompt, None)
    assert (Code.CONTEXT_LENGTH_EXCEEDED, 1) == (told.value.code, len(bus.asked))


async def test_nobody_asks_for_a_request_that_has_ended() -> None:
    """Its own failure is what its client hears."""
    wanted = entry()

    def cancel() -> None:
        wanted.failure = Failure(Code.CANCELLED, "let go")

    bus = Answering(NoResponder(), then=cancel)
    with pytest.raises(Failure, match="let go"):
        await Tokenizers(bus, 1).admit(wanted, wanted.prompt, None)
    assert 1 == len(bus.asked)


async def test_nobody_asks_past_the_deadline() -> None:
    """The client hears what was wrong last, and that it may try again."""
    wanted = entry(0.0)

    with pytest.raises(Failure, match="no tokenizer answers") as told:
        await Tokenizers(Answering(NoResponder()), 1).admit(wanted, wanted.prompt, None)
    assert told.value.code is Code.UNAVAILABLE and told.value.retry_after


async def test_a_consultation_is_asked_for_until_it_is_answered() -> None:
    wanted, answer = m.Encode(m.Text("x")), m.Encoded(1)
    answering = Answering(NoResponder(), NoAnswer(), answer)

    assert answer == await Tokenizers(answering, 1).consult("sim", wanted, m.Encoded)
    with pytest.raises(Failure, match="it says why"):
        await Tokenizers(Answering(refused(Code.INVALID_REQUEST)), 1).consult("sim", wanted, m.Encoded)
