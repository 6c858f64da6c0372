"""How likely a token was, in an answer and in a prompt, through the OpenAI SDK: held against what the shipped
model computes in a process of our own."""

import numpy as np
import pytest
from openai import OpenAI
from tokenizers import Tokenizer

from tests.kit.oracle import Oracle
from tests.kit.sdk import chatted, completed, ids


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
