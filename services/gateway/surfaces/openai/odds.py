"""A token's odds, as the two OpenAI surfaces tell them: for one token, in a chunk, and for a whole answer.

A token that is only a part of a character has no text of its own; it is named by its bytes, as OpenAI does.
"""

import codecs
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from millrace.messages import Likely, SpelledOdds
from services.gateway.desk import Piece


class Logprobs(Protocol):
    """Of one answer."""

    def of(self, piece: Piece) -> dict[str, Any]: ...

    def read(self, prompt: list[SpelledOdds]) -> dict[str, Any]:
        """Of the prompt, which stands before the answer."""
        ...


class ChatLogprobs:
    def of(self, piece: Piece) -> dict[str, Any]:
        return self.read([piece.odds] if piece.odds else [])

    def read(self, prompt: list[SpelledOdds]) -> dict[str, Any]:
        content = [
            {**_entry(each.token), "top_logprobs": [_entry(one) for one in each.best]} for each in prompt
        ]
        return {"content": content, "refusal": None}


def _entry(token: Likely) -> dict[str, Any]:
    return {
        "token": _text(token.spelling, ""),
        "logprob": token.logprob,
        "bytes": list(token.spelling),
    }


class TextLogprobs:
    def __init__(self, echo: str = ""):
        self._echo = echo
        self._offset = len(echo)  # characters before the token

    def of(self, piece: Piece) -> dict[str, Any]:
        offset = self._offset
        self._offset += len(piece.text)
        if piece.odds is None:
            return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        return {
            "tokens": [_text(piece.odds.token.spelling, "bytes:")],
            "token_logprobs": [piece.odds.token.logprob],
            "top_logprobs": [_likeliest(piece.odds)],
            "text_offset": [offset],
        }

    def read(self, prompt: list[SpelledOdds]) -> dict[str, Any]:
        return {
            "tokens": [_text(each.token.spelling, "bytes:") for each in prompt],
            "token_logprobs": [None, *(each.token.logprob for each in prompt[1:])],
            "top_logprobs": [None, *(_likeliest(each) for each in prompt[1:])],
            "text_offset": list(self._offsets(prompt)),
        }

    def _offsets(self, prompt: list[SpelledOdds]) -> Iterator[int]:
        """Where each token is in the text. Some are not: what a tokenizer puts before every text, say."""
        utf8, at = codecs.getincrementaldecoder("utf-8")("replace"), 0
        for each in prompt:
            yield at
            text = utf8.decode(each.token.spelling)
            text = text if self._echo.startswith(text, at) else text.removeprefix(" ")
            at += len(text) if self._echo.startswith(text, at) else 0


def _likeliest(odds: SpelledOdds) -> dict[str, float]:
    return {_text(each.spelling, "bytes:"): each.logprob for each in [*odds.best, odds.token]}


def logprobs(shape: Literal["chat", "text"], echo: str = "") -> Logprobs:
    return ChatLogprobs() if shape == "chat" else TextLogprobs(echo)


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the chunks of an answer add up to."""
    whole = dict(parts[0])
    for name, value in whole.items():
        if isinstance(value, list):
            whole[name] = [entry for part in parts for entry in part[name]]
    return whole


def _text(spelling: bytes, prefix: str) -> str:
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in spelling)
