"""An answer in one piece."""

from typing import Any, Literal

import msgspec

from services.gateway.desk import Answer
from services.gateway.stream import Head, usage


async def whole(
    answer: Answer, head: Head, shape: Literal["chat", "text"], *, token_ids: bool = False
) -> bytes:
    texts: list[str] = []
    tokens: list[int] = []
    finish = ""
    while not finish:
        for piece in await answer.pieces():
            texts.append(piece.text)
            tokens.append(piece.token)
            finish = piece.finish
    text = "".join(texts)
    choice: dict[str, Any] = {"index": 0}
    if shape == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    choice |= {"logprobs": None, "finish_reason": finish}
    if token_ids:
        choice["token_ids"] = tokens
    return msgspec.json.encode(
        {
            **msgspec.structs.asdict(head),
            "choices": [choice],
            "usage": usage(answer.prompt_tokens, len(tokens)),
        }
    )
