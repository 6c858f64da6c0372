"""Answers kept to a grammar, token by token."""

import json
from bisect import bisect_left
from itertools import takewhile
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance._lib import LLParserLimits
from tokenizers import Tokenizer

from millrace.grammar import LIMITS, GrammarError, Grammars
from millrace.messages import Chat, Form, Sampling, Voice
from services.engine.ahead import Ahead
from services.engine.choice.sample import Candidates, choose
from services.engine.steps.guide import Guide
from services.engine.steps.sequence import Sequence
from services.gateway.desk import Piece
from services.gateway.speech import CALLS, Speech, Spoken
from services.tokenizer.constrain import grammar
from services.tokenizer.wish import Wish
from tests.kit.schemas import Schema, objects, schemas

DEMO = Path(__file__).parents[2] / "models" / "demo"
GRAMMARS = Grammars(DEMO)
TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
VOCAB, EOS = 4096, 2
CLOSE = [id for id in range(3, VOCAB) if set(TOKENIZER.decode([id])) & set('}]"')]


def guided(text: str) -> Guide:
    guide = Guide()
    guide.begin(GRAMMARS.matcher(text), GRAMMARS.tokens.vocab_size)
    return guide


def made(wish: Wish) -> str:
    return grammar(wish, GRAMMARS.special)


def formed(kind: Any, text: str = "") -> str:
    return made(Wish(Form(kind, text, "p"), None, Voice(), False))


class Babble:
    """Logits of no sense whatever, but one: it likes to come to an end."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)

    def candidates(self) -> Candidates:
        logits = self._rng.normal(0, 2, VOCAB).astype(np.float32)
        logits[[*CLOSE, EOS]] += 6
        ids = np.argsort(-logits, kind="stable")[None, :40]
        return Candidates(ids, logits[ids[0]][None], VOCAB, lambda: logits[None])


def run(text: str, seed: int, most: int = 600) -> tuple[Sequence, list[bool]]:
    """An answer, and at each of its tokens whether it could have ended there."""
    sequence = Sequence("r", 2, [5, 6], Sampling(seed), most, stop_ids=frozenset({EOS}), epoch=1)
    sequence.guide = guided(text)
    babble, ends, finish = Babble(seed), [], ""
    while not finish:
        sequence.allowed = sequence.guide.allow(sequence.tokens, 2)
        assert sequence.allowed is not None
        ends.append(bool(sequence.allowed[0] >> EOS & 1))
        finish = sequence.append(choose(babble.candidates(), [sequence])[0])
    assert "stop" == finish
    return sequence, ends


def said(sequence: Sequence) -> str:
    return str(TOKENIZER.decode(sequence.tokens[2:-1], skip_special_tokens=False))


@settings(max_examples=200, deadline=None)
@given(schemas, st.integers(0, 2**32))
def test_a_schema_holds(schema: Schema, seed: int) -> None:
    """Whatever the model would rather say, the answer is JSON of that schema, as another library sees it."""
    sequence, _ = run(formed("schema", json.dumps(schema)), seed)

    jsonschema_rs.validator_for(schema).validate(json.loads(said(sequence)))


@settings(max_examples=30, deadline=None)
@given(objects, st.integers(0, 2**32), st.data())
def test_it_is_taken_up_anywhere(schema: Schema, seed: int, data: st.DataObject) -> None:
    """From the committed tokens alone, another engine allows the same at every later place."""
    text = formed("schema", json.dumps(schema))
    sequence, _ = run(text, seed)
    start = data.draw(st.integers(2, len(sequence.tokens) - 1))
    first, second = guided(text), guided(text)
    for end in range(2, start):
        first.allow(sequence.tokens[:end], 2)
    for end in range(start, len(sequence.tokens)):
        one, other = (
            first.allow(sequence.tokens[:end], 2),
            second.allow(sequence.tokens[:end], 2),
        )
        assert one is not None and other is not None and (one == other).all()


def test_an_end_exactly_where_the_grammar_has_one() -> None:
    """Not before the text is complete; and where it can be nothing more, nothing else."""
    sequence, ends = run(formed("regex", "^[0-9]{3}(-[a-f])?$"), 1)
    known = said(sequence)

    assert 3 <= len(known) <= 5
    assert not any(ends[: len(TOKENIZER.encode(known[:2]).ids)]) and ends[-1]
    assert "Oslo" == said(run(formed("choice", '["Oslo"]'), 2)[0])


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("regex", "^a/b$", {"a/b"}),
        ("regex", "a\\/b\\$", {"a/b$"}),
        ("regex", "line\none", {"line\none"}),
        ("choice", '["ja", "n\\"e\\\\in", "水\\u2028\\n"]', {"ja", 'n"e\\in', "水\u2028\n"}),
        ("grammar", 'start: "a" b\nb: "1" | "2"', {"a1", "a2"}),
        ("grammar", 'root ::= "a" b\nb ::= [12]', {"a1", "a2"}),
    ],
)
def test_other_forms(kind: str, text: str, expected: set[str]) -> None:
    """A regular expression is for the whole text; a grammar may be Lark's or llama.cpp's."""
    found = {said(run(formed(kind, text), seed)[0]) for seed in range(12)}

    assert found == expected


TOOLS: list[dict[str, Any]] = [
    {
        "name": "look",
        "parameters": {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]},
    },
    {"name": "n_o.w", "strict": True},
]


def wish(form: str, **more: Any) -> Wish:
    tools = [{"type": "function", "function": tool} for tool in TOOLS]
    chat = Chat(b"", json.dumps(tools).encode(), **({"must_call": True} | more))
    return Wish(None, chat, Voice(form), False)


def closed(tool: dict[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = tool.get("parameters", {"type": "object", "properties": {}})
    return parameters | {"additionalProperties": False}


@pytest.mark.parametrize("form", CALLS)
@pytest.mark.parametrize("one", [True, False])
def test_a_call_that_must_be_is_read_as_one(form: str, one: bool) -> None:
    """In each of the forms: what the grammar makes is what the parser reads, and nothing beside it."""
    for seed in range(8):
        sequence, _ = run(made(wish(form, one_call=one)), seed)
        speech, spoken = Speech(CALLS[form](str)), Spoken()
        for part in speech.hear(Piece(0, said(sequence), "stop")):
            spoken.add(part)

        assert "" == spoken.content and (1 == len(spoken.calls) if one else spoken.calls)
        for call in spoken.calls:
            tool = next(tool for tool in TOOLS if tool["name"] == call.name)
            jsonschema_rs.validator_for(closed(tool)).validate(json.loads(call.arguments))


def test_only_what_may_be_called_is() -> None:
    """A named tool, and no other."""
    for seed in range(6):
        assert "look" in said(run(made(wish("hermes", callable=["look"])), seed)[0])


def test_reasoning_comes_first_and_is_free() -> None:
    """A model that reasons is held to nothing before its reasoning's end."""
    thinks = Wish(Form("choice", '["Oslo"]'), None, Voice("", "qwen3"), True)
    guide = guided(made(thinks))
    free = guide.allow([5, 6], 2)
    assert free is not None and int(np.bitwise_count(free.view(np.uint32)).sum()) > 3000
    ids = TOKENIZER.encode("hm, let me see.</think>\n\nOslo").ids
    held = guided(made(thinks)).allow([5, 6, *ids], 2)

    assert (
        held is not None
        and [EOS] == np.flatnonzero(np.unpackbits(held.view(np.uint8), bitorder="little")).tolist()
    )


def test_a_guide_that_fails_ends_the_answer() -> None:
    """The sequence says so with its next token; it is never left unguided."""
    sequence = Sequence("r", 1, [5], Sampling(1), 9, epoch=1)
    sequence.guide = guided(formed("choice", '["Oslo"]'))
    sequence.tokens.append(77)  # which no grammar allowed
    assert sequence.guide.allow(sequence.tokens, 1) is None

    assert "failed" == sequence.append(3)


class Counted:
    """A matcher, and how many masks it was asked for."""

    def __init__(self, text: str):
        self.masks = 0
        self._matcher = GRAMMARS.matcher(text)

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        self.masks += 1
        self._matcher.unsafe_compute_mask_ptr(address, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)


def test_a_mask_that_was_computed_ahead_is_there() -> None:
    """It is what it would have been, and the matcher is not asked again until there is another token. The
    thread that did it ends with who asked."""
    ahead, made, text = Ahead(), [], formed("regex", "^[0-9]+$")
    for _ in range(3):
        sequence = Sequence("r", 1, [5], Sampling(1), 9, epoch=1, guide=Guide())
        matcher: Any = Counted(text)
        assert sequence.guide is not None
        sequence.guide.begin(matcher, GRAMMARS.tokens.vocab_size)
        made.append((sequence, matcher))
    for masks, token in enumerate(TOKENIZER.encode("1234567").ids, 1):
        for sequence, _ in made:
            sequence.tokens.append(token)
        ahead.begin([sequence for sequence, _ in made])
        ahead.end()
        assert all(matcher.masks == masks for _, matcher in made)
        for sequence, matcher in made:
            assert sequence.guide is not None
            known = sequence.guide.allow(sequence.tokens, 1)
            alone = guided(text).allow(sequence.tokens, 1)

            assert known is not None and alone is not None and (known == alone).all()
            assert masks == matcher.masks
    thread = ahead._thread
    del ahead
    assert thread is not None
    thread.join(10)

    assert not thread.is_alive()


class Broken(Counted):
    def consume_tokens(self, tokens: list[int]) -> bool:
        raise MemoryError(tokens)


def test_a_mask_that_cannot_be_computed_ahead_is_an_error_of_the_step() -> None:
    """Nobody waits for it for ever."""
    ahead = Ahead()
    sequence = Sequence("r", 1, [5], Sampling(1), 9, epoch=1, guide=Guide())
    matcher: Any = Broken(formed("regex", "^[0-9]+$"))
    assert sequence.guide is not None
    sequence.guide.begin(matcher, GRAMMARS.tokens.vocab_size)
    for _ in range(2):
        ahead.begin([sequence])
        with pytest.raises(MemoryError):
            ahead.end()


WORDY = formed("regex", "([a-z]{3,9}(" + "|".join(f"mill{n}" for n in range(40)) + ") ){9}")


def begun(grammars: Grammars) -> Guide:
    guide = Guide()
    guide.begin(grammars.matcher(WORDY), grammars.tokens.vocab_size, lambda: grammars.anew(WORDY))
    return guide


def followed(guide: Guide, tokens: list[int], begin: int = 1) -> list[bytes]:
    """The masks at each place from there on, as long as there are some."""
    masks = (guide.allow(tokens[:end], 1) for end in range(begin, len(tokens) + 1))
    return [mask.tobytes() for mask in takewhile(lambda mask: mask is not None, masks) if mask is not None]


def test_what_an_answer_may_cost_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's work has a limit, and what was built before is no work. An engine that takes over begins with
    nothing, and copies share what they have; still what one could follow to its end, all can."""
    tokens = [5, *TOKENIZER.encode(" ".join(f"{'the' * (n % 2)}stonemill{n}" for n in range(8))).ids]

    def limited(fuel: int) -> Grammars:
        monkeypatch.setattr(GRAMMARS, "_limits", LLParserLimits(**LIMITS | {"step_lexer_fuel": fuel}))
        GRAMMARS._kept.clear()
        return GRAMMARS

    def whole(fuel: int) -> bool:
        guide = Guide()
        guide.begin(limited(fuel).anew(WORDY), VOCAB)
        return len(followed(guide, tokens)) == len(tokens)

    enough = bisect_left(range(10_000), True, key=whole)
    undisturbed = followed(begun(limited(10_000)), tokens)
    assert len(tokens) == len(undisturbed)
    anew = 0
    for begin in range(1, len(tokens)):
        grammars = limited(enough)
        guides = [begun(grammars) for _ in range(2)]
        assert [undisturbed[begin - 1 :]] * 2 == [followed(guide, tokens, begin) for guide in guides]
        anew += sum(guide._anew is None for guide in guides)
        after = begun(grammars)
        assert after.allow(tokens[:1], 1) is not None
        assert after._anew is not None  # it was not given what had failed
    assert anew
    short, guide = limited(enough - 1), Guide()
    guide.begin(short.anew(WORDY), VOCAB, lambda: short.anew(WORDY))
    assert len(followed(guide, tokens)) < len(tokens)
    assert guide.failed


def test_it_answers_when_its_guide_is_there() -> None:
    """Until then it only prefills."""
    sequence = Sequence("r", 1, [5], Sampling(1), 9, epoch=1, guide=Guide())
    assert not sequence.granted
    assert sequence.guide is not None
    sequence.guide.begin(None, 0)

    assert sequence.granted


@pytest.mark.parametrize("text", ["start: foo", 'start: %json {"not": {}}', "start: /a(?=b)/", "start: ("])
def test_a_wrong_grammar_is_an_error(text: str) -> None:
    """It says what is wrong."""
    with pytest.raises(GrammarError, match=r"\w+"):
        GRAMMARS.matcher(text)
