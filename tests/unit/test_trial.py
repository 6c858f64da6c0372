"""Grammars are tried where they can harm nothing, and a bad one is refused by name."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from millrace.errors import Code, Failure
from millrace.messages import Chat, Form, Voice
from services.tokenizer.trial import TRY_S, Trial
from services.tokenizer.wish import Wish

DEMO = Path(__file__).parents[2] / "models" / "demo"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trial() -> AsyncIterator[Trial]:
    trial = Trial(DEMO)
    yield trial
    await trial.stop()


def wish(kind: Any, text: str = "", tools: list[dict[str, Any]] | None = None) -> Wish:
    chat = (
        Chat(b"", json.dumps([{"type": "function", "function": t} for t in tools]).encode())
        if tools
        else None
    )
    return Wish(Form(kind, text, "response_format"), chat, Voice("hermes"), False)


def schema(value: object) -> Wish:
    return wish("schema", json.dumps(value))


RULES = 4000
BOMBS = {
    # Takes minutes and gigabytes.
    "patterns": schema({"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}b.*$"} for i in range(1, 40)]}),
    # Takes the whole stack.
    "chain": wish(
        "grammar",
        "start: " + " | ".join(f"a{i}" for i in range(RULES)) + "\n"
        + "\n".join(f'a{i}: "x" a{(i + 1) % RULES} | "y"' for i in range(RULES)),
    ),
    "products": schema(
        {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(4)]} for i in range(6)]}
    ),
    "deep": wish("grammar", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "long": wish("choice", json.dumps(["x" * 300_000])),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_bomb_is_refused(trial: Trial, name: str) -> None:
    """With a word to its sender; the next request finds everything in order."""
    with pytest.raises(Failure) as refused:
        await trial.grammar(BOMBS[name])

    assert (Code.INVALID_REQUEST, "response_format") == (refused.value.code, refused.value.param)
    assert await trial.grammar(wish("choice", '["a"]'))


HEAVY = {
    "regex": wish("regex", "(a+)+b"),
    "repeated": wish("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "enum": schema({"enum": [f"value {i} of many" for i in range(10_000)]}),
    "choice": wish("choice", json.dumps([f"value {i}" for i in range(10_000)])),
    "properties": schema({"properties": {f"p{i}": {"type": "integer"} for i in range(500)}}),
}


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_only_looks_like_one_is_taken(trial: Trial, name: str) -> None:
    """These are much, and within the limits."""
    assert await trial.grammar(HEAVY[name])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_wish_is_tried_once(trial: Trial) -> None:
    """The second time nobody is asked: a bomb repeated costs nothing."""
    first = await trial.grammar(wish("object"))
    process = trial._process
    with pytest.raises(Failure):
        await trial.grammar(BOMBS["deep"])
    trial._process = None
    try:
        assert first == await trial.grammar(wish("object"))
        with pytest.raises(Failure):
            await trial.grammar(BOMBS["deep"])
        assert trial._process is None
    finally:
        trial._process = process


@pytest.mark.asyncio(loop_scope="module")
async def test_a_process_that_died_is_started_again(trial: Trial) -> None:
    """And the wish that found it dead is judged by itself."""
    assert await trial.grammar(wish("choice", '["before"]'))
    process = trial._process
    assert process is not None
    process.kill()
    await process.wait()

    assert await trial.grammar(wish("choice", '["after"]'))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_wish_whose_judge_is_killed_is_tried_again(trial: Trial) -> None:
    """Whoever was killed amid a trial was not ended by the wish: its client comes again, and is judged."""
    await trial.prepare()
    process = trial._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    killed = asyncio.ensure_future(trial.grammar(wish("choice", '["killed"]')))
    await asyncio.sleep(0.05)
    process.kill()
    with pytest.raises(Failure) as failure:
        await killed

    assert Code.UNAVAILABLE == failure.value.code
    assert await trial.grammar(wish("choice", '["killed"]'))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pause_refuses_no_wish(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for longer than a trial may compute; in the end its client is told to come again."""

    def stopped() -> asyncio.subprocess.Process:
        assert trial._process is not None
        trial._process.send_signal(signal.SIGSTOP)
        return trial._process

    await trial.prepare()
    process = stopped()
    short = asyncio.ensure_future(trial.grammar(wish("choice", '["short"]')))
    await asyncio.sleep(1.2 * TRY_S)
    process.send_signal(signal.SIGCONT)
    assert await short

    monkeypatch.setattr("services.tokenizer.trial.LET_S", 0.05)
    stopped()
    with pytest.raises(Failure) as late:
        await trial.grammar(wish("choice", '["long"]'))
    monkeypatch.undo()

    assert Code.UNAVAILABLE == late.value.code
    assert await trial.grammar(wish("choice", '["long"]'))


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        (wish("schema", '{"not": {}}'), "response_format", 'Unimplemented keys: ["not"]'),
        (wish("schema", '{"properties": 5}'), "response_format", "properties must be an object"),
        (wish("regex", "a(?=b)"), "response_format", "invalid regex"),
        (wish("grammar", "start: A\nA: /a/ & /b/"), "response_format", "it allows no answer"),
        (
            wish("object", tools=[{"name": "f"}, {"name": "g", "strict": True, "parameters": {"not": {}}}]),
            "tools[1].function.parameters",
            'Unimplemented keys: ["not"]',
        ),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_who_is_at_fault(trial: Trial, wrong: Wish, param: str, said: str) -> None:
    """The parameter, and what is wrong with it."""
    with pytest.raises(Failure) as refused:
        await trial.grammar(wrong)

    assert param == refused.value.param
    assert said in refused.value.message
