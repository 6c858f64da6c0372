"""A model's control tokens, and where a client's text could be taken for one.

A conversation is data from outside: whatever stands in a message, a tool or a template argument must
never become a control token, or a user could close his own turn and speak as the system. The reference
encodes the rendered text in one go and so cannot tell. Here

    1  an invisible random mark is put inside every control token's text that a client wrote, and into
       each end and beginning of a text that could become one beside another text
    2  the template is rendered, and the marks are taken out again, but their places are remembered
    3  a control token's text over such a place is the client's, and is encoded as ordinary characters

so that a conversation without such text is encoded exactly as by the reference, in one go.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from millrace.errors import Code, Failure

MARK_LENGTH = 8  # characters of 16 random bits each: nobody writes that by chance, or twice
PRIVATE_PLANE = 0xF0000  # private use: no letter, no white space, nothing that a template would change
MAX_FORGED = 1000  # texts about a model quote its control tokens, but not so often; each costs microseconds
MAX_DEPTH = 64  # of a tool's schema; far below Python's own limit


class Controls:
    """As texts. One of a single character has no inside to mark; none has any."""

    def __init__(self, id_of: Mapping[str, int]):
        self.id_of = {text: token_id for text, token_id in id_of.items() if len(text) > 1}
        self.ids = frozenset(self.id_of.values())
        texts = sorted(self.id_of, key=len, reverse=True)  # the longest at a place wins, as in the reference
        self._pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        self._reach = max(map(len, texts), default=1) - 1
        self._heads = {text[:end] for text in texts for end in range(1, len(text))}
        self._tails = {text[start:] for text in texts for start in range(1, len(text))}
        self._firsts = {text[0] for text in texts}
        self._lasts = {text[-1] for text in texts}
        edges = re.escape("".join(sorted(self._firsts | self._lasts)))
        self._edge = re.compile(f"[{edges}]" if edges else "(?!)")

    def places(self, text: str) -> list[int]:
        """Where a client's text needs marks; mostly nowhere. White space is looked past: templates trim."""
        if not self._edge.search(text):  # nearly all texts: neither a first nor a last character of any
            return []
        places, at = [], 0
        while match := self._pattern.search(text, at):
            at = match.start() + 1
            places.append(at)
        end = len(text.rstrip())
        tail = text[max(end - self._reach, 0) : end]
        if not self._firsts.isdisjoint(tail) and any(tail[at:] in self._heads for at in range(len(tail))):
            places.append(end)
        start = len(text) - len(text.lstrip())
        head = text[start : start + self._reach]
        if not self._lasts.isdisjoint(head) and any(head[: at + 1] in self._tails for at in range(len(head))):
            places.append(start)
        return sorted(places)

    def marked(self, given: tuple[Any, ...]) -> tuple[tuple[Any, ...], str]:
        """The same with a mark wherever a text needs one, and that mark; "" where none does."""
        places = sum(len(self.places(text)) for text in _texts(given))
        if not places:
            return given, ""
        if places > MAX_FORGED:
            raise Failure(
                Code.INVALID_REQUEST,
                f"the messages contain more than {MAX_FORGED} of this model's control tokens",
                param="messages",
            )
        mark = "".join(chr(PRIVATE_PLANE + secrets.randbelow(0xFFFE)) for _ in range(MARK_LENGTH))
        return tuple(self._with(part, mark) for part in given), mark

    def _with(self, value: Any, mark: str) -> Any:
        if isinstance(value, str):
            places = self.places(value)
            edges = zip([0, *places], [*places, None], strict=True)
            return mark.join(value[start:end] for start, end in edges) if places else value
        if isinstance(value, list):
            return [self._with(item, mark) for item in value]
        if isinstance(value, dict):
            return {self._with(key, mark): self._with(item, mark) for key, item in value.items()}
        return value

    def spoken(self, text: str, marks: set[int]) -> list[re.Match[str]]:
        """The control tokens that the template wrote into a rendered text: no mark is inside of them."""
        if not marks:
            return list(self._pattern.finditer(text))
        spoken, at = [], 0
        while match := self._pattern.search(text, at):
            if marks.isdisjoint(range(match.start() + 1, match.end())):
                spoken.append(match)
                at = match.end()
            else:  # a client's text uses nothing up: it could hide the beginning of a real one
                at = match.start() + 1
        return spoken


def unmarked(rendered: str, mark: str) -> tuple[str, set[int]]:
    """The rendered text without its marks, and where they were."""
    if not mark:
        return rendered, set()
    parts = rendered.split(mark)
    return "".join(parts), set(accumulate(len(part) for part in parts[:-1]))


def _texts(given: Any) -> Iterator[str]:
    """All strings within, keys too."""
    level = [given]
    for _depth in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
        if not below:
            return
        level = below
    raise Failure(Code.INVALID_REQUEST, f"nested more than {MAX_DEPTH} deep", param="messages")
