"""Token ids become text, one at a time.

    TextDecoder      one answer's text so far: what is complete is given out, the rest is kept
    _Spelling        one tokenizer's table from an id to what it writes; shared by all its decoders

The promises, for every sequence of ids, even one that is no text at all:

    whole      the pieces and the end together are exactly `tokenizer.decode(ids)`
    pure       the piece of a token depends on the ids up to it and on nothing else, so that a process
               that takes over and feeds the ids again gives the same pieces

`tokenizers.decoders.DecodeStream` gives neither: it compares decoded windows that end in U+FFFD, so
that after invalid bytes it raises, or keeps its text for ever, and where it starts again depends on
the past of its process. Here each id is spelled once, into bytes (or text), and only those few are
carried on: the UTF-8 decoder of the standard library replaces ill-formed bytes as Rust's does.

The prompt is never fed: an answer's text begins with its first token, whatever the prompt ended in.
"""

import codecs
import functools
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from millrace.models import inside

Piece = str | bytes | None  # text; bytes that are none, or not yet; nothing at all

FIRST = 1 << 15
"""Ids that are spelled before they are met. A vocabulary begins with what is met most."""

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, for its decoding side. A bad one is a ValueError that names it."""
    path = inside(folder, "tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path}: {error}") from None


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in printable]
    standing = [*printable, *range(256, 256 + len(hidden))]
    return {chr(point): value for point, value in zip(standing, [*printable, *hidden], strict=True)}


_ALPHABET = _byte_level_alphabet()


class _Steps:
    """A decoder's steps from tokenizer.json, reduced to what they do to one token and to the whole."""

    def __init__(self, state: dict[str, Any] | None):
        self.byte_level = False
        self.byte_fallback = False
        self.fused = False
        self.replacements: list[tuple[str, str]] = []
        self.space = ""  # Metaspace's stand-in for a space
        self.drops_first_space = False
        self.strip = ("", 0)  # the character, and how many of it the text loses at its start
        self.joint = " " if state is None else ""  # no decoder: the tokens themselves, like words
        for step in self._flat(state):
            if not self._take(step):
                raise ValueError(f"the tokenizer's decoder {step['type']} cannot be followed token by token")

    def _flat(self, state: dict[str, Any] | None) -> list[dict[str, Any]]:
        if state is None:
            return []
        if state["type"] == "Sequence":
            return [step for part in state["decoders"] for step in self._flat(part)]
        return [state]

    def _take(self, step: dict[str, Any]) -> bool:
        """Whether the step could be taken. Their order matters: only the one order in use is followed."""
        kind = step["type"]
        whole = self.byte_level or self.fused  # the tokens have become one text
        if kind == "Fuse":
            self.fused = True
        elif kind == "Strip" and whole and not self.byte_level and not step["stop"] and not self.strip[1]:
            self.strip = (step["content"], step["start"])
        elif whole or self.byte_fallback:
            return False
        elif kind == "ByteLevel":
            self.byte_level = not self.replacements and not self.space
            return self.byte_level
        elif kind == "ByteFallback":
            self.byte_fallback = True
        elif kind == "Replace" and "String" in step["pattern"]:
            self.replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace" and not self.replacements and not self.space:
            self.space = step["replacement"]
            self.drops_first_space = step["prepend_scheme"] != "never"
        else:
            return False
        return True


class _Spelling(dict[int, Piece]):
    """What each id writes. The rare ones are spelled when they are met: most are never used."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool):
        super().__init__()
        decoder = tokenizer.decoder
        self.steps = _Steps(None if decoder is None else json.loads(decoder.__getstate__()))
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._skipped = {token.content for token in added if token.special} if skip_special else set()

    def __missing__(self, token_id: int) -> Piece:
        try:
            token = self._tokenizer.id_to_token(token_id)
        except OverflowError:  # negative, or over 32 bits
            return None
        if token is None:  # a row of the model beyond its vocabulary; not kept: there is no end of those
            return None
        piece = self[token_id] = None if token in self._skipped else self._spell(token)
        return piece

    def first(self, token_id: int) -> str | bytes:
        """What an id that is the first of its text writes: Metaspace drops the space it begins with."""
        token = str(self._tokenizer.id_to_token(token_id))
        return self._spell(token.replace(self.steps.space, "") if self.steps.drops_first_space else token)

    def learn(self) -> None:
        """To spell an id takes longer than all else that is done for a token."""
        for token_id in range(min(FIRST, self._tokenizer.get_vocab_size())):
            self[token_id]

    def _spell(self, token: str) -> str | bytes:
        steps = self.steps
        if steps.byte_level:
            try:
                raw = bytes([_ALPHABET[char] for char in token])
            except KeyError:  # an added token, written as itself
                return token
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return raw
        for old, new in steps.replacements:
            token = token.replace(old, new)
        if steps.byte_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        if steps.space:
            token = token.replace(steps.space, " ")
        return token


@functools.lru_cache(maxsize=16)  # one or two for each model that a process serves
def _spelling(tokenizer: Tokenizer, skip_special: bool) -> _Spelling:
    return _Spelling(tokenizer, skip_special)


def learn(tokenizer: Tokenizer) -> None:
    """Be ready for most of what its answers will consist of."""
    _spelling(tokenizer, True).learn()


class TextDecoder:
    """One answer's text. The tokenizer must not be changed once a decoder was made from it."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._spelled = _spelling(tokenizer, skip_special)
        self._all = _spelling(tokenizer, False)
        steps = self._spelled.steps
        self._byte_level = steps.byte_level
        self._begun = not (steps.drops_first_space or steps.joint)
        # Bytes that are no text yet. Of a byte-level tokenizer, the beginning of a character; else
        # byte-fallback tokens in a row: the reference judges such a run as a whole.
        self._held = b""
        self._strip, self._stripping = steps.strip
        self._plain = self._unchanged()

    def spell(self, token_id: int) -> bytes:
        """What the token writes wherever it stands, control tokens too."""
        piece = self._all[token_id]
        return piece.encode() if isinstance(piece, str) else piece or b""

    def step(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is still incomplete."""
        piece = self._spelled[token_id]
        if self._plain and not self._held and isinstance(piece, str):
            return piece
        if piece is None:
            return ""
        if self._byte_level:
            return self._completed(piece if isinstance(piece, bytes) else piece.encode())
        if not self._begun:
            self._begun = True
            piece = self._spelled.first(token_id)
        elif self._spelled.steps.joint:
            piece = f"{self._spelled.steps.joint}{piece!s}"
        if isinstance(piece, bytes):
            self._held += piece
            return ""
        text = self._stripped(self._run_text() + piece)
        self._plain = self._unchanged()
        return text

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        return self._completed(b"", final=True) if self._byte_level else self._stripped(self._run_text())

    def _unchanged(self) -> bool:
        """Whether from now on a token's text stands as it is spelled, where no bytes stand before it."""
        return self._byte_level or (self._begun and not self._spelled.steps.joint and not self._stripping)

    def _completed(self, piece: bytes, *, final: bool = False) -> str:
        held = self._held + piece
        text, used = codecs.utf_8_decode(held, "replace", final)
        self._held = held[used:]
        return text

    def _run_text(self) -> str:
        run, self._held = self._held, b""
        try:
            return run.decode()
        except UnicodeDecodeError:  # one bad byte spoils its run, and each of its bytes is told
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        while self._stripping and text:
            if not text.startswith(self._strip):
                self._stripping = 0
                break
            text = text[1:]
            self._stripping -= 1
        return text
