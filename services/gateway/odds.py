"""A token's odds, as the two OpenAI surfaces tell them: for one token, in a chunk, and for a whole answer.

A token that is only a part of a character has no text of its own; it is named by its bytes, as OpenAI does.
"""

from typing import Any, Literal, Protocol

from millrace.messages import Likely
from services.gateway.desk import Piece


class Logprobs(Protocol):
    """Of one answer."""

    def of(self, piece: Piece) -> dict[str, Any]: ...


class ChatLogprobs:
    def of(self, piece: Piece) -> dict[str, Any]:
        if piece.odds is None:
            return {"content": [], "refusal": None}
        best = [_entry(each) for each in piece.odds.best]
        return {"content": [{**_entry(piece.odds.token), "top_logprobs": best}], "refusal": None}


def _entry(token: Likely) -> dict[str, Any]:
    return {
        "token": _text(token.spelling, ""),
        "logprob": token.logprob,
        "bytes": list(token.spelling),
    }


class TextLogprobs:
    def __init__(self) -> None:
        self._offset = 0  # characters of the answer before the token

    def of(self, piece: Piece) -> dict[str, Any]:
        offset = self._offset
        self._offset += len(piece.text)
        if piece.odds is None:
            return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        token, best = piece.odds.token, piece.odds.best
        return {
            "tokens": [_text(token.spelling, "bytes:")],
            "token_logprobs": [token.logprob],
            "top_logprobs": [{_text(each.spelling, "bytes:"): each.logprob for each in [*best, token]}],
            "text_offset": [offset],
        }


def logprobs(shape: Literal["chat", "text"]) -> Logprobs:
    return ChatLogprobs() if shape == "chat" else TextLogprobs()


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
