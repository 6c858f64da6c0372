"""What becomes of a request that OpenAI's routes have read: asks for the desk, or a refusal by name."""

import json
from typing import Any

import msgspec
import pytest

from millrace.errors import Failure
from millrace.messages import Chat, Ids, Sampling, Text
from services.gateway.desk import Ask
from services.gateway.surfaces.openai import admit, wire
from tests.kit.asks import HELLO, VISIT, chat, refusal, text, texts, with_literal


def test_every_parameter_reaches_the_ask() -> None:
    """What the client asks for is what the desk is asked for."""
    ask = chat(
        max_completion_tokens=20,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={"5": 1, "017": -100},
        seed=7,
        stop=["a", "b"],
        stop_token_ids=[3],
        min_tokens=2,
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        chat_template_kwargs={"think": True},
    )

    assert (
        Ask(
            model="sim",
            input=Chat(b'[{"role":"user","content":"hello"}]', template_args=b'{"think":true}'),
            sampling=Sampling(7, 0.0, 0.5, 40, 0.1, 0.5, -0.5, 1.1, {5: 1, 17: -100}),
            max_tokens=20,
            min_tokens=2,
            stop_ids=[3],
            ignore_eos=True,
            stops=["a", "b"],
            include_stop=True,
            keep_special=True,
            visit=VISIT,
        )
        == ask
    )


def test_null_is_the_default() -> None:
    """Every optional parameter may be null, and means what its absence means."""
    names = [field.name for field in msgspec.structs.fields(wire.ChatBody) if not field.required]
    nulls = dict.fromkeys(names)

    assert chat(seed=1) == chat(**nulls | {"seed": 1})


def test_parameters_without_effect() -> None:
    """What cannot change an answer, or asks for what is done anyway, is accepted."""
    ask = chat(
        seed=1,
        store=True,
        safety_identifier="x",
        prompt_cache_key="x",
        prompt_cache_retention="24h",
        prompt_cache_options={"mode": "implicit", "ttl": "30m"},
        verbosity="low",
        prediction={"type": "content", "content": "x"},
        user="u",
        metadata={"a": "b"},
        service_tier="auto",
        n=1,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        logit_bias={},
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        modalities=["text"],
    )

    assert chat(seed=1) == ask


A_TOOL = {"type": "function", "function": {"name": "f"}}
STRICT = {"type": "function", "function": {"name": "f", "strict": True}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [A_TOOL]}}


@pytest.mark.parametrize("wish", [{"ignore_eos": True}, {"min_tokens": 1}])
@pytest.mark.parametrize(
    ("tool", "choice"), [(A_TOOL, "required"), (A_TOOL, A_TOOL), (A_TOOL, ALLOWED), (STRICT, "auto")]
)
def test_a_call_that_keeps_to_a_grammar_ends_the_answer(
    tool: dict[str, Any], choice: Any, wish: dict[str, Any]
) -> None:
    """What would have it go on is refused before it begins; of calls that keep to none it is not."""
    body = {"model": "sim", "messages": HELLO, "tools": [tool], "tool_choice": choice, **wish}

    assert [refusal(json.dumps(body).encode()).param] == list(wish)
    for free in ({"tools": [A_TOOL]}, {"tools": [STRICT], "tool_choice": "none"}):
        assert chat(**free, **wish)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
def test_what_completions_cannot_be_asked_for(params: dict[str, Any], name: str) -> None:
    """So are those of the older route, and what makes no sense together."""
    with pytest.raises(Failure) as caught:
        texts(**params)

    assert name == caught.value.param


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, -1),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"logprobs": False, "top_logprobs": 0}, -1),
    ],
)
def test_logprobs_of_a_chat(asked: dict[str, Any], told: int) -> None:
    """Of a token alone, of the likeliest ones too, or none."""
    assert told == chat(**asked).logprobs


def test_top_logprobs_need_logprobs() -> None:
    """As with OpenAI: without them it would be a wish without an effect."""
    assert "top_logprobs" == refusal(with_literal("top_logprobs", "1")).param


def test_logprobs_of_a_completion() -> None:
    """Here a number asks for them, even 0; and to find the best of several they are needed too."""
    told = [text(**asked).logprobs for asked in ({}, {"logprobs": 0}, {"logprobs": 5}, {"best_of": 2})]

    assert [-1, 0, 5, 0] == told


def test_choices_share_all_but_their_seeds() -> None:
    """The first is what a request for one would be; the others' seeds depend on the request's alone."""
    (ask,) = texts(seed=7)
    first, *others = admit.choices([ask], 4)

    assert ask == first
    assert [admit.sibling_seed(7, i) for i in range(1, 4)] == [other.sampling.seed for other in others]
    assert 4 == len({choice.sampling.seed for choice in (first, *others)})
    assert {id(ask.input)} == {id(choice.input) for choice in (first, *others)}


def test_sibling_seeds_never_change() -> None:
    """Clients may ask for one of several answers again."""
    assert [7, 4076770354369271989, 2**63 - 1] == [
        admit.sibling_seed(7, 0),
        admit.sibling_seed(7, 1),
        admit.sibling_seed(2**63 - 1, 0),
    ]


@pytest.mark.parametrize(("prompts", "each", "name"), [(1, 129, "n"), (43, 3, "n"), (129, 1, "prompt")])
def test_choices_have_a_bound(prompts: int, each: int, name: str) -> None:
    """Over all prompts of a request."""
    with pytest.raises(Failure) as caught:
        admit.choices(texts(prompt=["a"] * prompts), each)

    assert name == caught.value.param


def test_messages_are_made_plain() -> None:
    """Templates get roles they know and content that is one string; the rest of a conversation stays."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ask = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ]
    )

    assert isinstance(ask.input, Chat)
    assert [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ] == json.loads(ask.input.messages)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", Text("hi")),
        (["hi"], Text("hi")),
        ([1, 2], Ids([1, 2])),
        ([[1, 2]], Ids([1, 2])),
    ],
)
def test_prompt_forms(prompt: object, expected: Text | Ids) -> None:
    """A prompt is a string or token ids, alone or as a list of one."""
    assert expected == text(prompt=prompt).input


def test_several_prompts() -> None:
    """Strings, or lists of token ids: each is a prompt."""
    assert [Text("a"), Text("b")] == [ask.input for ask in texts(prompt=["a", "b"])]
    assert [Ids([1]), Ids([2, 3])] == [ask.input for ask in texts(prompt=[[1], [2, 3]])]


@pytest.mark.parametrize(
    "prompt", [[], [[]], [[1], []], [1, "a"], ["a", 1], ["a", [1]], [[1], "a"], [[1], 2]]
)
def test_prompts_that_are_none(prompt: object) -> None:
    """Anything else is refused by the name of prompt."""
    with pytest.raises(Failure) as caught:
        texts(prompt=prompt)

    assert "prompt" == caught.value.param


def test_limits_that_disagree() -> None:
    """Two different limits are refused; the same one twice, as some load clients send it, is not."""
    both = {"model": "sim", "messages": HELLO, "max_tokens": 5, "max_completion_tokens": 6}
    short = {"model": "sim", "messages": HELLO, "max_tokens": 5, "min_tokens": 6}

    assert ["max_tokens", "min_tokens"] == [
        refusal(json.dumps(body).encode()).param for body in (both, short)
    ]
    assert 5 == chat(max_tokens=5, max_completion_tokens=5).max_tokens


def test_completions_are_short_by_default() -> None:
    """Without a limit a completion has sixteen tokens, as OpenAI's has, and a chat has the context."""
    assert (16, None) == (text().max_tokens, chat().max_tokens)


def test_seeds_differ_unless_given() -> None:
    """Two requests without a seed do not share one."""
    assert chat().sampling.seed != chat().sampling.seed
    assert 7 == chat(seed=7).sampling.seed


def test_no_probability_mass_is_the_likeliest_token() -> None:
    """`top_p: 0` chooses as OpenAI does, the likeliest token, and reaches no sampler as a zero."""
    assert Sampling(1, 1.0, 1.0, 1) == chat(seed=1, top_p=0).sampling


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"model": "caf\xe9"}', "The body's text is not UTF-8."),
        (with_literal("guided_json", '{"a": ' * 90_000), "The body's JSON is nested too deeply."),
    ],
)
def test_a_body_that_cannot_be_read(raw: bytes, said: str) -> None:
    """What is wrong is told, and not what else might be."""
    assert said == refusal(raw).message


def test_a_body_begins_with_a_mark_of_its_encoding() -> None:
    """As files do that were written on Windows: it is no part of the JSON."""
    body = json.dumps({"model": "sim", "messages": HELLO}).encode("utf-8-sig")

    assert "sim" == wire.read(wire.ChatBody, body).model
