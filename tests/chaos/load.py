"""What the clients ask for, and what they are told when nothing goes wrong."""

import asyncio
from dataclasses import dataclass
from typing import Any

from tests.kit.client import Answer, ask

CHAT = "/v1/chat/completions"
TALE = "the mill turns while water runs and every sack of grain is weighed twice before it is ground"
WORDS = TALE.split()


@dataclass(frozen=True)
class Wish:
    body: dict[str, Any]
    reference: Answer | None = None  # recorded on a service that nobody disturbed
    exact: bool = True  # whether the model promises the same words again

    def differs(self, answer: Answer) -> str:
        """Nothing, if the client got what it gets undisturbed, byte for byte."""
        assert self.reference
        for name in ("token_ids", "text", "finish", "usage", "bytes_"):
            expected, actual = getattr(self.reference, name), getattr(answer, name)
            if expected != actual:
                return f"{name}: {_where(expected, actual)}"
        return ""

    def whole(self, answer: Answer) -> bool:
        """Whether it has as many tokens: what is promised where words may be others. But other words may have
        no stop string among them, or sooner."""
        assert self.reference
        told, tokens = answer.finish == self.reference.finish, len(answer.token_ids)
        return "stop" in self.body or (told and tokens == len(self.reference.token_ids))

    @property
    def usual_gap(self) -> float:
        assert self.reference
        gaps = sorted(self.reference.gaps)
        return gaps[len(gaps) // 2] if gaps else 0.0


def _where(expected: Any, actual: Any) -> str:
    if isinstance(expected, dict):
        return f"{actual}, not {expected}"
    for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
        if one != other:
            return f"at {index} {other!r}, not {one!r}"
    return f"length {len(actual)}, not {len(expected)}"


def _body(seed: int, words: int, max_tokens: int, **more: Any) -> dict[str, Any]:
    text = " ".join(WORDS[(seed + i) % len(WORDS)] for i in range(words))
    body = {"model": "sim", "messages": [{"role": "user", "content": text}], "seed": seed}
    body |= {"max_tokens": max_tokens, "stream": True, "return_token_ids": True}
    return body | {"stream_options": {"include_usage": True}} | more


BODIES = [
    _body(1, 3, 250, temperature=0),
    _body(2, 40, 170, temperature=0),
    _body(3, 400, 120, temperature=0),
    _body(4, 5, 250, logprobs=True, top_logprobs=3),
    _body(5, 90, 220, temperature=1.3, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.4),
    _body(6, 200, 150, temperature=0.7, top_k=5, presence_penalty=-0.5, logit_bias={"300": 9, "301": 5}),
    _body(7, 12, 240, min_tokens=60, stop=["never said", ""]),
    _body(8, 30, 250, temperature=0.9, ignore_eos=True, stop=[""]),
]
LATE = [_body(9, 20, 60), _body(10, 150, 100, ignore_eos=True)]
"""These are asked for just after the fault."""


REAL = {"ignore_eos": True}
LONGER = 6
"""A real model has no pace that could be set: its answers are made long enough to be disturbed."""


async def recorded(url: str, model: str, *, exact: bool = True) -> list[Wish]:
    """The wishes with their references: as many as BODIES, then the LATE ones."""
    bodies = [{**body, "model": model} for body in (*BODIES, *LATE)]
    if model != "sim":
        bodies = [{**body, **REAL, "max_tokens": body["max_tokens"] * LONGER} for body in bodies]
    unstopped = [{k: v for k, v in body.items() if k != "stop"} for body in bodies]
    answers = await asyncio.gather(*(ask(url, body) for body in unstopped))
    bodies = [_stopped(body, answer.text) for body, answer in zip(bodies, answers, strict=True)]
    stopping = [index for index, body in enumerate(bodies) if "stop" in body]
    for index, answer in zip(
        stopping, await asyncio.gather(*(ask(url, bodies[i]) for i in stopping)), strict=True
    ):
        answers[index] = answer
    for answer in answers:
        assert not answer.failure, f"undisturbed, a request failed: {answer.failure}"
    return [Wish(body, answer, exact) for body, answer in zip(bodies, answers, strict=True)]


def _stopped(body: dict[str, Any], text: str) -> dict[str, Any]:
    """An empty stop string stands for one that the answer comes to at two thirds of its length."""
    if "stop" not in body:
        return body
    start = len(text) * 2 // 3
    while "\ufffd" in text[start : start + 4]:
        start += 1
    return body | {"stop": [stop or text[start : start + 4] for stop in body["stop"]]}
