"""The demo model's texts and its tokenizer, which anybody can make again."""

import json
import operator
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from services.tokenizer.encode import Encoder
from train import facts
from train.corpus import KINDS, conversations, held_out
from train.facts import ALIASES, CAPITALS
from train.tokenizer import MAX_LENGTH, VOCAB_SIZE, config, train

DEMO = Path("models/demo")
OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def test_a_seed_gives_its_conversations_again() -> None:
    """The same seed, the same corpus; another seed, another one; more of one begins with the less."""
    first = list(conversations(seed=5, count=300))

    assert first == list(conversations(seed=5, count=300))
    assert first != list(conversations(seed=6, count=300))
    assert len(first) == 300


def test_turns_are_in_order() -> None:
    """System first if at all, user and assistant in turn, a tool's answer after its call, the model last."""
    follows = {
        "system": {"user"},
        "user": {"assistant"},
        "assistant": {"user", "tool"},
        "tool": {"assistant"},
    }
    for messages, tools in conversations(seed=1, count=500):
        roles = [message["role"] for message in messages]

        assert all(then in follows[before] for before, then in pairwise(roles))
        assert roles[0] in ("system", "user")
        assert roles[-1] == "assistant"
        assert "tool" not in roles or tools is not None


def test_the_answers_are_true() -> None:
    """Sums add up, their written steps too; capitals are the table's, and JSON is JSON."""
    told: set[str] = set()
    for messages, _tools in conversations(seed=2, count=3000):
        for message in messages:
            text = message["content"]
            if message["role"] != "assistant":
                continue
            if " = " in text:
                for line in text.split("\n"):
                    told.add("sum")
                    shown, *steps, result = line.split(" = ")
                    assert all(value(step) == int(result) for step in [shown, *steps])
            elif text.startswith("The capital of "):
                country, capital = text.removeprefix("The capital of ").removesuffix(".").split(" is ")
                told.add("capital")
                assert capital == CAPITALS[ALIASES.get(country, country.removeprefix("the "))]
            elif text.startswith("{"):
                told.add("json")
                assert isinstance(json.loads(text), dict)

    assert told == {"sum", "capital", "json"}


def value(shown: str) -> int:
    one, sign, other = shown.split()
    return OPERATORS[sign](int(one), int(other))


def test_questions_for_the_evaluation_are_held_out() -> None:
    """A tenth of the sums is never told, whatever the kind of conversation and the order of the numbers."""
    told = {
        tuple(shown.split())
        for messages, _tools in conversations(seed=3, count=5000)
        for message in messages
        if message["role"] == "assistant"
        for shown, is_sum, _ in [line.partition(" = ") for line in message["content"].split("\n")]
        if is_sum
    }
    asked = {
        (left, "+", right)
        for left in range(10, 100)
        for right in range(100)
        if held_out("+", *sorted([left, right]))
    }

    assert 700 < len(asked) < 1100
    assert len(told) > 3000
    assert not {(str(left), sign, str(right)) for left, sign, right in asked} & told


def test_every_kind_is_told() -> None:
    """All the kinds are drawn, and many scripts are among them."""
    text = "".join(m["content"] for messages, _ in conversations(seed=0, count=5000) for m in messages)

    assert all(min(weights) > 0 for weights in KINDS.values())
    samples = [*"éΓМ你こ안😀", "🇳🇴", "👨\u200d👩\u200d👧", facts.NAME, "water mill"]
    for sample in samples:
        assert sample in text


def test_the_committed_tokenizer_is_the_corpus_own() -> None:
    """Training again writes the same bytes as are in the repository."""
    tokenizer = train(seed=0, count=20_000)

    assert (DEMO / "tokenizer.json").read_text(encoding="utf-8") == tokenizer.to_str(pretty=True) + "\n"
    assert json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8")) == config(tokenizer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE


def test_every_conversation_fits_the_model() -> None:
    """Rendered with the template, tools and all, nothing comes near the model's length."""
    encoder = Encoder.load(DEMO)
    longest = max(
        len(encoder.chat(messages, tools=tools, add_generation_prompt=False))
        for messages, tools in conversations(seed=0, count=1000)
    )

    assert longest < MAX_LENGTH // 4
