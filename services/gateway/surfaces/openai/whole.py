"""An answer in one piece."""

from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from services.gateway.desk import Answer, Piece
from services.gateway.speech import Speech, Spoken
from services.gateway.surfaces.openai.chunks import Head, usage
from services.gateway.surfaces.openai.odds import Logprobs, joined, logprobs


@dataclass(slots=True)
class _Choice:
    speech: Speech
    logprobs: Logprobs
    echo: str
    spoken: Spoken = field(default_factory=Spoken)
    tokens: list[int] = field(default_factory=list)
    odds: list[dict[str, Any]] = field(default_factory=list)
    logprob: float = 0.0  # of all of it

    def hear(self, pieces: list[Piece], *, with_logprobs: bool) -> None:
        for piece in pieces:
            if with_logprobs and piece.read:
                self.odds.append(self.logprobs.read(piece.read))
            if not piece.silent:
                self.tokens.append(piece.token)
                if with_logprobs:
                    self.odds.append(self.logprobs.of(piece))
            if piece.odds is not None:
                self.logprob += piece.odds.token.logprob
        if self.speech.plain:
            pieces = [replace(pieces[-1], text="".join(piece.text for piece in pieces))]
        for piece in pieces:
            for part in self.speech.hear(piece):
                self.spoken.add(part)


async def whole(
    answer: Answer,
    head: Head,
    shape: Literal["chat", "text"],
    speeches: list[Speech],
    *,
    token_ids: bool = False,
    with_logprobs: bool = False,
    best: tuple[int, int] = (1, 1),
) -> bytes:
    """`best`: so many choices are told, out of every so many."""
    choices = [
        _Choice(speech, logprobs(shape, echo), echo)
        for speech, echo in zip(speeches, answer.echoes, strict=True)
    ]
    answer.patient = True
    while not answer.ended:
        for number, pieces in groupby(await answer.pieces(), attrgetter("choice")):
            choices[number].hear(list(pieces), with_logprobs=with_logprobs)
    told = []
    for index, choice in enumerate(_best(choices, *best)):
        one: dict[str, Any] = {"index": index}
        if shape == "chat":
            one["message"] = message(choice.spoken)
        else:
            one["text"] = choice.echo + choice.spoken.content
        odds = joined(choice.odds) if with_logprobs else None
        one |= {"logprobs": odds, "finish_reason": choice.spoken.reason}
        if token_ids:
            one["token_ids"] = choice.tokens
        told.append(one)
    count = sum(len(choice.tokens) for choice in choices)
    return msgspec.json.encode(
        {
            **msgspec.structs.asdict(head),
            "choices": told,
            "usage": usage(answer.prompt_tokens, count, answer.cached_tokens),
        }
    )


def _best(choices: list[_Choice], told: int, of: int) -> list[_Choice]:
    """Of every so many, those with the highest log probability per token."""
    if told == of:
        return choices
    found = []
    for start in range(0, len(choices), of):
        group = choices[start : start + of]
        found += sorted(group, key=lambda choice: -choice.logprob / max(len(choice.tokens), 1))[:told]
    return found


def message(spoken: Spoken) -> dict[str, Any]:
    """What the chunks' deltas add up to."""
    said: dict[str, Any] = {"role": "assistant", "content": spoken.content, "refusal": None}
    if spoken.reasoning:
        said |= {"reasoning_content": spoken.reasoning, "reasoning": spoken.reasoning}
    if spoken.calls:
        said["content"] = spoken.content or None
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in spoken.calls
        ]
    return said
