"""A tokenizer whose library panics: a text that makes it do so harms itself, a library that stays so ends."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from millrace import messages as m
from millrace.bus import Bus
from millrace.errors import Code
from millrace.telemetry import Context
from services.tokenizer.actor import TokenizerActor
from services.tokenizer.encode import Encoder

DEMO = Path("models/demo")
POISON = "POISON"


class Panic(BaseException):
    """As libraries that are written in Rust raise it."""


class Cracked:
    """A tokenizer that panics at one text, and then at all of them if that is `lasting`."""

    def __init__(self, whole: Tokenizer, *, lasting: bool):
        self._whole = whole
        self._lasting = lasting
        self._broken = False

    def encode_batch_fast(self, texts: list[str], **given: Any) -> Any:
        if self._broken or POISON in texts:
            self._broken = self._lasting
            raise Panic
        return self._whole.encode_batch_fast(texts, **given)


class Silent(Bus):
    def __init__(self) -> None:
        self.counts = Counter()


@pytest.mark.parametrize("lasting", [False, True])
async def test_a_panic(lasting: bool) -> None:
    """Who asked hears of a defect. A library that fails for every text from then on ends its process, and
    whoever asks it meanwhile is to ask another."""
    encoder = Encoder.load(DEMO)
    vocab = encoder.vocab_size
    encoder._tokenizer = Cracked(encoder._tokenizer, lasting=lasting)  # type: ignore[assignment]
    actor = TokenizerActor(Silent(), "t", "demo", encoder, vocab, 64, m.Voice(), DEMO, 0)
    with pytest.raises(Panic):
        await actor._asked(m.Encode(m.Text(POISON)), Context())
    answer = await actor._asked(m.Encode(m.Text("Hello")), Context())

    assert lasting == actor.broken.done()
    if lasting:
        assert isinstance(actor.broken.result(), Panic)
        assert isinstance(answer, m.Refused) and Code.UNAVAILABLE is answer.code
    else:
        assert isinstance(answer, m.Encoded) and answer.count > 0
