"""Every sampling parameter by what it does, through the OpenAI SDK, with the shipped model.

What the model computes is known here too, from a process of our own, so that an answer is not only seen to
change: each of its tokens is held against the rule.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from tokenizers import Tokenizer

from millrace.messages import Sampling
from tests.kit.oracle import Oracle
from tests.kit.sdk import chatted, completed, ids
from tests.kit.service import Service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = asyncio.run(Service.start(env={"MILLRACE_MODEL": "demo"}, engines=2))
    yield made
    asyncio.run(made.stop())


@pytest.fixture(scope="module")
def eos(tokenizer: Tokenizer) -> int:
    found = tokenizer.token_to_id("<|im_end|>")
    assert found is not None
    return found


NAMES = {"presence_penalty": "presence", "frequency_penalty": "frequency", "repetition_penalty": "repetition"}


@pytest.mark.parametrize(
    "wanted",
    [
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": 2},
        {"temperature": 1.7, "top_p": 0.7},
        {"temperature": 2, "top_k": 3},
        {"temperature": 2, "top_k": 300},
        {"temperature": 1.5, "min_p": 0.05},
        {"temperature": 0, "presence_penalty": 2},
        {"temperature": 0, "frequency_penalty": 2},
        {"temperature": 0, "repetition_penalty": 1.7},
        {"temperature": 1, "frequency_penalty": -1, "presence_penalty": -0.5},
        {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 0.8, "presence_penalty": 0.3, "min_p": 0.01},
        {"temperature": 1.5, "logit_bias": {"300": 6.5, "301": 7, "1000": -100}, "top_p": 0.95, "top_k": 100},
    ],
    ids=" ".join,
)
def test_each_token_is_the_one_of_the_rule(
    client: OpenAI, oracle: Oracle, prompt: list[int], eos: int, wanted: dict[str, Any]
) -> None:
    """The answer, token for token, is what the slow sampler makes of independently computed logits."""
    made = completed(client, prompt, max_tokens=20, **wanted)
    given: dict[str, Any] = {NAMES.get(name, name): value for name, value in wanted.items()}
    bias = {int(key): value for key, value in given.pop("logit_bias", {}).items()}
    expected = oracle.answer(prompt, Sampling(5, **given, bias=bias), 20, {eos})

    assert expected == ids(made)


def test_each_parameter_changes_the_answer(client: OpenAI, prompt: list[int]) -> None:
    """And none of those above would pass by doing nothing."""
    base = ids(completed(client, prompt, max_tokens=20, temperature=0))
    changes: list[dict[str, Any]] = [
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"repetition_penalty": 1.7},
        {"logit_bias": {str(base[0]): -100}},
    ]
    hot = ids(completed(client, prompt, max_tokens=20, temperature=2))
    cuts: list[dict[str, Any]] = [{"top_k": 3}, {"min_p": 0.2}, {"top_p": 0.5}, {"seed": 6}]

    assert all(
        base != ids(completed(client, prompt, max_tokens=20, temperature=0, **each)) for each in changes
    )
    assert all(hot != ids(completed(client, prompt, max_tokens=20, temperature=2, **each)) for each in cuts)


def test_a_bias_forces_a_token(client: OpenAI) -> None:
    """As much as is allowed leaves no other choice."""
    made = chatted(client, max_tokens=6, logit_bias={"777": 100})

    assert [777] * 6 == ids(made)


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
def test_an_id_outside_the_vocabulary_is_named(client: OpenAI, oracle: Oracle, name: str) -> None:
    """The last id is taken, the one behind it is refused by name."""
    beyond: Any = {"logit_bias": {str(oracle.vocab): 1}, "stop_token_ids": [oracle.vocab]}
    last: Any = {"logit_bias": {str(oracle.vocab - 1): 1}, "stop_token_ids": [oracle.vocab - 1]}
    chatted(client, **{name: last[name]})
    with pytest.raises(BadRequestError) as caught:
        chatted(client, **{name: beyond[name]})

    assert name == caught.value.param
    assert str(oracle.vocab) in caught.value.message


def test_a_stop_token_ends_the_answer(client: OpenAI, tokenizer: Tokenizer, prompt: list[int]) -> None:
    """It is counted but not shown, unless it was asked for; the reason is 'stop'."""
    base = ids(completed(client, prompt, max_tokens=12, temperature=0, ignore_eos=True))
    at = next(i for i in range(3, 12) if base[i] not in base[:i])
    wanted: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    made = completed(client, prompt, stop_token_ids=[base[at]], **wanted)
    shown = completed(client, prompt, stop_token_ids=[base[at]], include_stop_str_in_output=True, **wanted)

    assert base[: at + 1] == ids(made) == ids(shown)
    assert ("stop", at + 1) == (made.choices[0].finish_reason, made.usage.completion_tokens)
    assert tokenizer.decode(base[:at]) == made.choices[0].text
    assert tokenizer.decode(base[: at + 1]) == shown.choices[0].text


def test_min_tokens_and_ignore_eos(client: OpenAI, prompt: list[int], eos: int) -> None:
    """A model that wants to end may do so only after so many tokens; or not at all."""
    eager = {str(eos): 100}
    ends = completed(client, prompt, max_tokens=9, logit_bias=eager)
    waits = completed(client, prompt, max_tokens=9, logit_bias=eager, min_tokens=5)
    never = completed(client, prompt, max_tokens=9, logit_bias=eager, ignore_eos=True)

    assert ([eos], "stop") == (ids(ends), ends.choices[0].finish_reason)
    assert (eos, 6, "stop") == (ids(waits)[-1], len(ids(waits)), waits.choices[0].finish_reason)
    assert eos not in ids(waits)[:5]
    assert ([eos] * 9, "length") == (ids(never), never.choices[0].finish_reason)


# -- told as it comes, or at the end


def streamed(chunks: Any) -> tuple[dict[int, dict[str, Any]], Any]:
    """What the chunks of each choice add up to, and the usage."""
    found: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            of = found.setdefault(choice.index, {"text": "", "ids": [], "odds": {}, "finish": []})
            delta = getattr(choice, "delta", None)
            of["text"] += (delta.content if delta else choice.text) or ""
            of["ids"] += getattr(choice, "token_ids", None) or []
            for name, value in choice.logprobs.model_dump().items() if choice.logprobs else ():
                of["odds"][name] = [*of["odds"].get(name, []), *(value or [])]
            of["finish"] += [choice.finish_reason] if choice.finish_reason else []
    return dict(sorted(found.items())), usage


def whole(made: Any) -> tuple[dict[int, dict[str, Any]], Any]:
    found = {}
    for choice in made.choices:
        message = getattr(choice, "message", None)
        odds = choice.logprobs.model_dump() if choice.logprobs else {}
        found[choice.index] = {
            "text": message.content if message else choice.text,
            "ids": choice.token_ids,
            "odds": {name: value or [] for name, value in odds.items()},
            "finish": [choice.finish_reason],
        }
    return found, made.usage


@pytest.mark.parametrize(
    ("surface", "wanted"),
    [
        ("chat", {}),
        ("chat", {"n": 3}),
        ("chat", {"n": 2, "logprobs": True, "top_logprobs": 4}),
        ("chat", {"n": 2, "logprobs": True, "stop": ["e", "zz"]}),
        ("text", {}),
        ("text", {"n": 2, "logprobs": 4, "frequency_penalty": 1.5}),
        ("text", {"n": 3, "logprobs": 0, "stop": ["e", "zz"]}),
        ("text", {"n": 2, "echo": True}),
        ("text", {"n": 2, "echo": True, "logprobs": 2}),
        ("text", {"echo": True, "logprobs": 2, "max_tokens": 0}),
    ],
    ids=str,
)
def test_streamed_and_whole_are_equal(
    client: OpenAI, prompt: list[int], surface: str, wanted: dict[str, Any]
) -> None:
    """Text, ids, log probabilities, finish and usage of every choice; one finish each."""
    wanted = {"temperature": 1.4, "max_tokens": 14, **wanted}

    def ask(**more: Any) -> Any:
        if surface == "chat":
            return chatted(client, **wanted, **more)
        return completed(client, prompt, **wanted, **more)

    expected, counted = whole(ask())
    actual, streams = streamed(ask(stream=True, stream_options={"include_usage": True}))

    assert expected == actual
    cached = {"prompt_tokens_details"}  # the second request finds what the first has computed
    assert counted.model_dump(exclude=cached) == streams.model_dump(exclude=cached)


def test_usage_in_every_chunk(client: OpenAI) -> None:
    """Of each choice, in a stream that asks for it: from nothing to all of its tokens, and the sum last."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = chatted(client, n=2, stream=True, stream_options=options, ignore_eos=True)

    for index in (0, 1):
        counts = [c.usage.completion_tokens for c in chunks if c.choices[0].index == index]

        assert sorted(counts) == counts
        assert (0, 12) == (counts[0], counts[-1])
    assert ([], 24) == (last.choices, last.usage.completion_tokens)
    assert {last.usage.prompt_tokens} == {c.usage.prompt_tokens for c in chunks}


# -- the prompt, echoed


def test_echo(client: OpenAI, tokenizer: Tokenizer, prompt: list[int]) -> None:
    """A text as it was sent; of ids, the text that they are, control tokens too."""
    control = [tokenizer.get_vocab()["<|im_start|>"], *prompt]
    plain, texted, given = (
        completed(client, "Once upon\u2028a  time", max_tokens=5, echo=echo) for echo in (False, True, True)
    )
    of_ids = completed(client, [prompt, control], max_tokens=5, echo=True)
    without = completed(client, [prompt, control], max_tokens=5)

    assert "Once upon\u2028a  time" + plain.choices[0].text == texted.choices[0].text == given.choices[0].text
    for choice, bare, asked in zip(of_ids.choices, without.choices, [prompt, control], strict=True):
        assert tokenizer.decode(asked, skip_special_tokens=False) + bare.text == choice.text


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "n": 2, "stream": True}, "best_of"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_cannot_be_is_refused_by_name(client: OpenAI, wanted: dict[str, Any], param: str) -> None:
    """With the name of the parameter, before anything runs."""
    with pytest.raises(BadRequestError) as caught:
        completed(client, **{"prompt": "a", **wanted})

    assert param == caught.value.param
    assert param in caught.value.message


# -- and all of it across a fail-over


def by_choice(chunks: Iterable[Any]) -> dict[int, list[Any]]:
    """The chunks of each choice. How they lie among one another is a matter of time."""
    found: dict[int, list[Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            found.setdefault(choice.index, []).append(choice.model_dump())
    return found


@pytest.mark.parametrize("surface", ["chat", "text"])
def test_killing_every_engine_changes_nothing(
    service: Service, client: OpenAI, prompt: list[int], surface: str
) -> None:
    """Midway in several answers with penalties, a bias and log probabilities: chunk for chunk the same."""
    wanted: dict[str, Any] = {
        "n": 3,
        "max_tokens": 250,
        "temperature": 1.3,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"300": 2},
        "min_p": 0.001,
        "ignore_eos": True,
        "stream": True,
    }

    def ask() -> Any:
        if surface == "chat":
            return chatted(client, logprobs=True, top_logprobs=3, **wanted)
        return completed(client, prompt, logprobs=3, **wanted)

    def disturbed() -> Iterator[Any]:
        for at, chunk in enumerate(ask()):
            if at == 120:
                for row in asyncio.run(service.rows("engine")):
                    os.kill(row.pid, signal.SIGKILL)
            yield chunk

    expected = by_choice(ask())

    assert expected == by_choice(disturbed())
    assert [250] * 3 == [sum(len(c.get("token_ids") or ()) for c in told) for told in expected.values()]
