"""An answer in one piece."""

from typing import Any, Literal

import msgspec

from services.gateway.desk import Answer
from services.gateway.speech import Speech, Spoken
from services.gateway.stream import Head, usage


async def whole(
    answer: Answer,
    head: Head,
    shape: Literal["chat", "text"],
    speech: Speech,
    *,
    token_ids: bool = False,
) -> bytes:
    spoken = Spoken()
    tokens: list[int] = []
    while not spoken.reason:
        for piece in await answer.pieces():
            tokens.append(piece.token)
            for part in speech.hear(piece):
                spoken.add(part)
    choice: dict[str, Any] = {"index": 0}
    if shape == "chat":
        choice["message"] = message(spoken)
    else:
        choice["text"] = spoken.content
    choice |= {"logprobs": None, "finish_reason": spoken.reason}
    if token_ids:
        choice["token_ids"] = tokens
    return msgspec.json.encode(
        {
            **msgspec.structs.asdict(head),
            "choices": [choice],
            "usage": usage(answer.prompt_tokens, len(tokens), answer.cached_tokens),
        }
    )


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
