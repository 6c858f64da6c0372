"""Several answers to one request are one answer: to read, to fail, and to let go of."""

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from millrace.errors import Code, Failure
from millrace.messages import Likely, Sampling, SpelledOdds, Text
from services.gateway.desk import Ask, Piece
from services.gateway.http.siblings import Siblings, opened
from services.gateway.speech import Speech
from services.gateway.surfaces.openai.chunks import Events, Head
from services.gateway.surfaces.openai.odds import ChatLogprobs, TextLogprobs, joined
from services.gateway.surfaces.openai.whole import whole
from services.gateway.visit import Visit
from tests.kit.desk import ScriptedAnswer, ScriptedDesk, said

HEAD = Head(id="cmpl-1", object="text_completion", created=5, model="sim", system_fingerprint="fp_1")


def asks(*prompts: str, each: int = 1) -> list[Ask]:
    made = [
        Ask(
            model="sim",
            input=Text(prompt),
            sampling=Sampling(1),
            max_tokens=9,
            stop_ids=[],
            ignore_eos=False,
            stops=[],
            include_stop=False,
            keep_special=False,
            visit=Visit(),
        )
        for prompt in prompts
    ]
    return [replace(ask) for ask in made for _ in range(each)]


def siblings(*answers: ScriptedAnswer) -> Siblings:
    return Siblings(asks("a", each=len(answers)), list(answers))


def chunks(raw: bytes) -> list[Any]:
    return [json.loads(event[6:]) for event in raw.decode().split("\n\n")[:-2]]


async def all_of(answer: Siblings) -> list[Piece]:
    found: list[Piece] = []
    while not answer.ended:
        found += await answer.pieces()
    return found


async def test_pieces_say_whose_they_are() -> None:
    """Each answer's in their order, and the end is the end of all."""
    made = siblings(
        ScriptedAnswer([[Piece(1, "a", "")], said("b", finish="stop")]),
        ScriptedAnswer([[Piece(2, "c", "length")]]),
    )
    first = await made.pieces()
    early = made.ended
    rest = await all_of(made)

    assert [(0, "a"), (1, "c"), (0, "b")] == [(piece.choice, piece.text) for piece in (*first, *rest)]
    assert (False, True) == (early, made.ended)


async def test_a_failure_of_one_is_a_failure_of_all() -> None:
    """Even where another has ended well."""
    late = Failure(Code.DEADLINE_EXCEEDED, "late")
    made = siblings(ScriptedAnswer([said("a")]), ScriptedAnswer([[Piece(1, "b", "")], late]))
    with pytest.raises(Failure) as caught:
        await all_of(made)

    assert late is caught.value


async def test_all_are_let_go_of_together() -> None:
    """By whoever lets go of the answer."""
    answers = [ScriptedAnswer([said("a")]) for _ in range(3)]
    siblings(*answers).cancel()

    assert all(answer.cancelled.is_set() for answer in answers)


async def test_patience_is_had_with_all() -> None:
    """A reader that tells them together is not woken for any one's tokens."""
    answers = [ScriptedAnswer([said("a")]) for _ in range(3)]
    made = siblings(*answers)
    made.patient = True

    assert [True] * 4 == [made.patient, *(answer.patient for answer in answers)]


async def test_news_of_any_wake_the_reader() -> None:
    """The first to have something to say is heard."""
    quiet, loud = ScriptedAnswer([1e9]), ScriptedAnswer([])
    made = siblings(quiet, loud)
    reading = asyncio.ensure_future(made.pieces())
    await asyncio.sleep(0)
    loud._script.append([Piece(7, "x", "")])
    loud.news.set()

    assert [(1, 7)] == [(piece.choice, piece.token) for piece in await reading]


async def test_a_prompt_is_counted_once() -> None:
    """Two prompts with two answers each are two prompts."""
    answers = [ScriptedAnswer([], prompt_tokens=n) for n in (7, 7, 5, 5)]
    answers[0].cached_tokens, answers[1].cached_tokens, answers[2].cached_tokens = 4, 6, 1
    made = Siblings(asks("a", "b", each=2), list(answers))

    assert (12, 5) == (made.prompt_tokens, made.cached_tokens)


@pytest.mark.parametrize("leaves", [False, True])
async def test_what_was_opened_is_let_go_when_another_is_refused(leaves: bool) -> None:
    """Or when the client leaves meanwhile: no job is left that nobody waits for."""
    desk = ScriptedDesk()
    waiting, going = 0, asyncio.Event()

    async def opening(ask: Ask) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            await going.wait()
            raise Failure(Code.QUEUE_FULL, "full")

    desk.opening = opening
    task = asyncio.ensure_future(opened(desk, asks("a", each=3)))
    while waiting < 3:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    if leaves:
        task.cancel()
    else:
        going.set()
    await asyncio.wait((task,))

    assert task.cancelled() if leaves else isinstance(task.exception(), Failure)
    assert [True, True] == [answer.cancelled.is_set() for answer in desk.answers]


async def test_one_answer_is_opened_as_it_is() -> None:
    """Nothing stands between it and its reader."""
    assert isinstance(await opened(ScriptedDesk(), asks("a")), ScriptedAnswer)


def test_events_of_several_choices() -> None:
    """Each has its role, its chunks and one finish; usage and [DONE] come once, after the last of all."""
    events = Events(HEAD, "chat", 7, include_usage=True, speeches=[Speech(), Speech()])
    pieces = [Piece(1, "a", ""), Piece(2, "b", "", choice=1), Piece(3, "", "stop", choice=1)]
    early, late = events.of(pieces), events.of([Piece(4, "c", "length")])
    told = [chunk["choices"][0] for chunk in chunks(early + late)[:-1]]

    assert b"[DONE]" not in early
    assert late.endswith(b"data: [DONE]\n\n")
    assert [
        (0, {"role": "assistant", "content": ""}, None),
        (0, {"content": "a"}, None),
        (1, {"role": "assistant", "content": ""}, None),
        (1, {"content": "b"}, None),
        (1, {}, "stop"),
        (0, {"content": "c"}, None),
        (0, {}, "length"),
    ] == [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in told]
    assert 4 == chunks(early + late)[-1]["usage"]["completion_tokens"]


def test_the_echo_comes_first() -> None:
    """In a chunk of its own, of each choice."""
    events = Events(HEAD, "text", 7, speeches=[Speech(), Speech()], echoes=["one", "two"])
    told = chunks(events.of([Piece(1, "a", "stop"), Piece(2, "b", "stop", choice=1)]))

    assert ["one", "a", "", "two", "b", ""] == [chunk["choices"][0]["text"] for chunk in told]


def odds(token: bytes, logprob: float, *best: tuple[bytes, float]) -> SpelledOdds:
    return SpelledOdds(Likely(token, logprob), [Likely(*each) for each in best])


ODD = [
    Piece(1, "", "", odds(b"\xc3", -1.5, (b"a", -0.5), (b"\xc3", -1.5))),
    Piece(2, "\u00e9", "", odds(b"\xa9", -0.25, (b"\xa9", -0.25))),
    Piece(3, "\u2028", "stop", odds("\u2028".encode(), -9999.0)),
]


def test_odds_of_a_chat() -> None:
    """Text, or the bytes where they are none; the likeliest as they came."""
    entry, _, separator = joined([ChatLogprobs().of(piece) for piece in ODD])["content"]

    assert {
        "token": "\\xc3",
        "logprob": -1.5,
        "bytes": [0xC3],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\\xc3", "logprob": -1.5, "bytes": [0xC3]},
        ],
    } == entry
    assert ("\u2028", [0xE2, 0x80, 0xA8], []) == (
        separator["token"],
        separator["bytes"],
        separator["top_logprobs"],
    )


def test_odds_of_a_completion() -> None:
    """Four lists of one length; the token itself is always among the likeliest told."""
    tell = TextLogprobs()

    assert {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", "\u2028"],
        "token_logprobs": [-1.5, -0.25, -9999.0],
        "top_logprobs": [
            {"a": -0.5, "bytes:\\xc3": -1.5},
            {"bytes:\\xa9": -0.25},
            {"\u2028": -9999.0},
        ],
        "text_offset": [0, 0, 1],
    } == joined([tell.of(piece) for piece in ODD])


@pytest.mark.parametrize("shape", ["chat", "text"])
async def test_streamed_odds_are_the_whole_ones(shape: Any) -> None:
    """Each token has its chunk, text or not; and no line ends within one, for any client."""
    raw = Events(HEAD, shape, 7, logprobs=True).of(ODD)
    told = [c["choices"][0]["logprobs"] for c in chunks(raw) if c["choices"][0]["logprobs"]]
    answer = json.loads(await whole(ScriptedAnswer([ODD]), HEAD, shape, [Speech()], with_logprobs=True))

    assert 3 == len(told)
    assert answer["choices"][0]["logprobs"] == joined(told)
    assert all(len(line) == len(line.splitlines()[0]) for line in raw.decode().split("\n") if line)


async def test_the_best_are_kept_for_each_prompt() -> None:
    """By the mean, not the sum: a long answer is no worse for being long."""
    scripts = [[-3.0], [-1.0, -1.0, -1.0, -1.0], [-2.0], [-5.0], [-4.0], [-9.0]]
    answers = []
    for at, logprobs in enumerate(scripts):
        last = len(logprobs) - 1
        pieces = [Piece(at, "t", "stop" if i == last else "", odds(b"t", x)) for i, x in enumerate(logprobs)]
        answers.append(ScriptedAnswer([pieces]))
    made = Siblings(asks("a", "b", each=3), list(answers))
    raw = await whole(made, HEAD, "text", [Speech() for _ in answers], token_ids=True, best=(2, 3))
    told = json.loads(raw)

    assert [(0, 1), (1, 2), (2, 4), (3, 3)] == [(c["index"], c["token_ids"][0]) for c in told["choices"]]
    assert 9 == told["usage"]["completion_tokens"]
