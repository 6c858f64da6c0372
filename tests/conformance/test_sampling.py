"""Every sampling parameter by what it does, through the OpenAI SDK, with the shipped model.

What the model computes is known here too, from a process of our own, so that an answer is not only seen to
change: each of its tokens, and how likely it was, is held against the rule.
"""

import asyncio
import json
import math
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from tokenizers import Tokenizer

from millrace import models
from millrace.messages import Sampling
from services.gateway.admit import sibling_seed
from tests.kit.oracle import Oracle
from tests.kit.service import Service

ASKED: Any = [{"role": "user", "content": "Tell me about water mills. Déjà vu?"}]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = asyncio.run(Service.start(env={"MILLRACE_MODEL": "demo"}, engines=2))
    yield made
    asyncio.run(made.stop())


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(models.find("demo").text / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    """No text that means anything: after it the model is in doubt, and repeats itself."""
    return [700, 800, 900, 1168]


@pytest.fixture(scope="module")
def eos(tokenizer: Tokenizer) -> int:
    found = tokenizer.token_to_id("<|im_end|>")
    assert found is not None
    return found


OWN = ["top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"]
OWN += ["include_stop_str_in_output", "skip_special_tokens", "return_token_ids"]


def completed(client: OpenAI, prompt: Any, **more: Any) -> Any:
    """Parameters that the SDK does not know travel as vLLM's users send them."""
    more.setdefault("seed", 5)
    extra = {"return_token_ids": True, **{name: more.pop(name) for name in OWN if name in more}}
    return client.completions.create(model="demo", prompt=prompt, extra_body=extra, **more)


def chatted(client: OpenAI, **more: Any) -> Any:
    more.setdefault("seed", 5)
    extra = {"return_token_ids": True, **{name: more.pop(name) for name in OWN if name in more}}
    return client.chat.completions.create(
        model="demo", messages=ASKED, max_tokens=more.pop("max_tokens", 12), extra_body=extra, **more
    )


def ids(made: Any, choice: int = 0) -> list[int]:
    found: list[int] = made.choices[choice].token_ids
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


# -- how likely a token was


def test_logprobs_are_those_of_the_model(client: OpenAI, oracle: Oracle, prompt: list[int]) -> None:
    """The log-softmax of the logits as they are, whatever temperature, bias and penalties made of them."""
    made = completed(
        client,
        prompt,
        max_tokens=10,
        logprobs=5,
        temperature=1.6,
        top_k=9,
        repetition_penalty=1.5,
        presence_penalty=1,
        logit_bias={"300": 9},
        ignore_eos=True,
    )
    told, tokens = made.choices[0].logprobs, ids(made)
    rows = [oracle.logprobs([*prompt, *tokens[:i]]) for i in range(10)]

    assert [pytest.approx(float(row[token]), abs=1e-9) for row, token in zip(rows, tokens, strict=True)] == (
        told.token_logprobs
    )
    for row, token, best in zip(rows, tokens, told.top_logprobs, strict=True):
        expected = sorted({*sorted(row.tolist(), reverse=True)[:5], float(row[token])}, reverse=True)

        assert expected == pytest.approx(sorted(best.values(), reverse=True), abs=1e-9)
    assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(10)]


@pytest.mark.parametrize("top", [None, 0, 20])
def test_logprobs_of_a_chat(client: OpenAI, top: int | None) -> None:
    """One entry a token, so many of the likeliest, best first; its bytes are those of the text."""
    made = chatted(client, logprobs=True, top_logprobs=top, temperature=1.5)
    entries = made.choices[0].logprobs.content
    shown = entries[:-1] if made.choices[0].finish_reason == "stop" else entries

    assert made.usage.completion_tokens == len(entries)
    assert {top or 0} == {len(entry.top_logprobs) for entry in entries}
    assert made.choices[0].message.content == b"".join(bytes(e.bytes) for e in shown).decode()
    for entry in entries:
        values = [each.logprob for each in entry.top_logprobs]

        assert sorted(values, reverse=True) == values
        assert entry.logprob <= values[0] if values else entry.logprob <= 0


def test_half_a_character_has_its_bytes(client: OpenAI, tokenizer: Tokenizer) -> None:
    """Of tokens that are only parts of a character, the bytes are told, and the text when it is whole."""
    vocab = tokenizer.get_vocab()
    first, second = vocab["Ã"], vocab["©"]  # the stand-ins for the two bytes of é
    bias = {str(first): 100}
    made = chatted(client, max_tokens=1, logprobs=True, top_logprobs=1, logit_bias=bias)
    texted = completed(client, [first, second, first, second], max_tokens=1, logprobs=1, logit_bias=bias)
    (entry,) = made.choices[0].logprobs.content

    assert ([0xC3], "\\xc3") == (entry.bytes, entry.token)
    assert ["bytes:\\xc3"] == texted.choices[0].logprobs.tokens


# -- several answers


def test_siblings_are_requests_of_their_own(client: OpenAI) -> None:
    """Each of n answers is what a request with its seed gives alone; the prompt is counted once."""
    made = chatted(client, n=4, temperature=1.6, logprobs=True, top_logprobs=2)
    alone = [
        chatted(client, seed=sibling_seed(5, i), temperature=1.6, logprobs=True, top_logprobs=2)
        for i in range(4)
    ]

    assert [0, 1, 2, 3] == [choice.index for choice in made.choices]
    for choice, one in zip(made.choices, alone, strict=True):
        expected = one.choices[0].model_copy(update={"index": choice.index})

        assert expected == choice
    assert len({choice.message.content for choice in made.choices}) > 1
    assert alone[0].usage.prompt_tokens == made.usage.prompt_tokens
    assert sum(one.usage.completion_tokens for one in alone) == made.usage.completion_tokens


def test_several_prompts_in_one_request(client: OpenAI, prompt: list[int]) -> None:
    """As if each had been asked by itself; all prompts are counted."""
    prompts = [prompt, prompt[:2], prompt[1:]]
    made = completed(client, prompts, n=2, max_tokens=8, temperature=1.3)
    alone = [completed(client, each, n=2, max_tokens=8, temperature=1.3) for each in prompts]

    assert [(i, c.token_ids) for i, c in enumerate(c for one in alone for c in one.choices)] == [
        (choice.index, choice.token_ids) for choice in made.choices
    ]
    assert sum(map(len, prompts)) == made.usage.prompt_tokens
    texts = completed(client, ["One", "Two"], max_tokens=2)
    assert [0, 1] == [choice.index for choice in texts.choices]


def test_best_of_keeps_the_likeliest(client: OpenAI, prompt: list[int]) -> None:
    """By the mean log probability of their tokens; all tokens are counted, those not told too."""
    wanted: dict[str, Any] = {"max_tokens": 10, "temperature": 1.8}
    everything = completed(client, prompt, n=5, logprobs=0, **wanted)
    best = completed(client, prompt, n=2, best_of=5, **wanted)

    def mean(choice: Any) -> float:
        told: list[float] = choice.logprobs.token_logprobs
        return math.fsum(told) / len(told)

    expected = sorted(everything.choices, key=mean, reverse=True)[:2]
    assert [choice.token_ids for choice in expected] == [choice.token_ids for choice in best.choices]
    assert [(0, None), (1, None)] == [(choice.index, choice.logprobs) for choice in best.choices]
    assert everything.usage.completion_tokens == best.usage.completion_tokens


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


@pytest.mark.parametrize("most", [0, 3])
def test_how_likely_a_prompt_is(client: OpenAI, oracle: Oracle, tokenizer: Tokenizer, most: int) -> None:
    """As evaluations ask it: each token's log probability and the likeliest in its place, of a prompt longer
    than a step takes and computed before, and of the answer behind it; without an answer too."""
    prompt = tokenizer.encode("The river ran past the mill, and the miller's cat sat é. " * 8).ids
    asked = [prompt, prompt[:1]]
    made = completed(client, asked, max_tokens=most, echo=True, logprobs=2, ignore_eos=True)
    plain = completed(client, asked, max_tokens=max(most, 1), logprobs=2, ignore_eos=True)

    assert 64 < len(prompt)
    assert (len(prompt) + 1, 2 * most) == (made.usage.prompt_tokens, made.usage.completion_tokens)
    for choice, bare, of in zip(made.choices, plain.choices, asked, strict=True):
        told, answer = choice.logprobs, bare.logprobs
        rows = [oracle.logprobs(of[:i]) for i in range(1, len(of))]
        likely = [float(row[token]) for row, token in zip(rows, of[1:], strict=True)]

        assert [None, *likely] == pytest.approx(told.token_logprobs[: len(of)], abs=1e-9)
        assert told.top_logprobs[0] is None and "length" == choice.finish_reason
        for row, best in zip(rows, told.top_logprobs[1:], strict=False):
            assert {*np.sort(row)[-2:].round(9).tolist()} <= {round(value, 9) for value in best.values()}
        assert tokenizer.decode(of) + (bare.text if most else "") == choice.text
        assert answer.tokens[:most] == told.tokens[len(of) :]
        assert answer.token_logprobs[:most] == told.token_logprobs[len(of) :]
        for at, token in zip(told.text_offset, told.tokens, strict=True):
            assert token.startswith("bytes:") or choice.text.startswith(token, at)


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


def test_a_failed_sibling_is_a_failed_request(client: OpenAI) -> None:
    """A prompt among others that does not fit refuses all of them, and leaves nothing behind."""
    with pytest.raises(BadRequestError) as caught:
        completed(client, ["a", "word " * 9000, "b"], max_tokens=200)

    assert "context_length_exceeded" == caught.value.code
    assert completed(client, "a", max_tokens=2).usage.completion_tokens == 2


def test_a_client_that_leaves_leaves_nothing(service: Service, client: OpenAI) -> None:
    """All of its answers end, those too that were still in the queue."""
    stream = chatted(client, n=32, max_tokens=400, ignore_eos=True, stream=True)
    next(iter(stream))
    stream.close()

    async def idle() -> None:
        async with asyncio.timeout(20):
            while any(row.load for row in await service.ps() if row.role in ("gateway", "engine")):
                await asyncio.sleep(0.1)

    asyncio.run(idle())


def test_as_many_answers_as_there_may_be(client: OpenAI) -> None:
    """More than the engines have places for: some wait for others, and all come."""
    made = completed(client, "One", n=128, max_tokens=3, temperature=2, ignore_eos=True)

    assert list(range(128)) == [choice.index for choice in made.choices]
    assert 3 * 128 == made.usage.completion_tokens


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
