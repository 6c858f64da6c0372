"""Grammars that an answer is held to, token by token: llguidance over one model's vocabulary.

The tokenizer tries each before it is queued, the engine follows it. Both bound its work in the same way,
so what was admitted can be followed; only what a grammar needs late in an answer shows no earlier than there.
Whether that is too much depends on the grammar and the answer alone: not on who else has it, nor on where an
engine took the answer over.
"""

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits

from millrace.models import eos_ids, read_json, words

MAX_CHARS = 256 << 10
"""Of a grammar's text. OpenAI takes schemas of about half of that."""

LIMITS: dict[str, Any] = {
    "max_grammar_size": 50_000,  # symbols: some hundred milliseconds
    "max_lexer_states": 20_000,  # of one or two KiB each
    "initial_lexer_fuel": 1_000_000,  # some 20 ms
    "step_lexer_fuel": 100_000,  # some 7 ms: what the others in a step may have to wait
    "step_max_items": 25_000,  # some milliseconds
}

KEPT = 16
"""Compiled grammars: most clients of a service send the same few."""


class GrammarError(ValueError):
    """The grammar is wrong, or too much; the message says how."""


class Grammars:
    """Of one model. May be used by several threads; takes a second to make for a large vocabulary, and makes
    itself when first asked."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._limits = LLParserLimits(verbose_errors=False, **LIMITS)

    @property
    def tokens(self) -> LLTokenizer:
        with self._lock:
            if self._tokens is None:
                self._tokens = self._made()
            return self._tokens

    def _made(self) -> LLTokenizer:
        tokenizer = read_json(self._folder, "tokenizer.json")
        ids = words(tokenizer)
        size = max(ids.values()) + 1
        ends = sorted(eos_ids(self._folder, ids.get))
        # Settings of somebody's training run: the forced tokens of a grammar are not to be cut or padded.
        plain = json.dumps(tokenizer | {"truncation": None, "padding": None}, ensure_ascii=False)
        try:
            return LLTokenizer(plain, n_vocab=size, eos_token=ends)
        except Exception as error:  # the library raises what its parts do
            raise GrammarError(
                f"this model's tokenizer is of no kind that can be constrained: {error}"
            ) from None

    def special(self, text: str) -> bool:
        """Whether a tag is one token, which no plain text in a grammar stands for."""
        ids = self.tokens.tokenize_str(text, parse_special=True)
        return len(ids) == 1 and bool(self.tokens.is_special_token(ids[0]))

    def anew(self, text: str) -> LLMatcher:
        """One that has nothing in common with any other. What there was is not copied any more: a copy shares
        what all have built, its limit and its failure."""
        with self._lock:
            self._kept.pop(text, None)
        return LLMatcher(self.tokens, text, log_level=0, limits=self._limits)

    def matcher(self, text: str) -> LLMatcher:
        """A fresh one, at its beginning; GrammarError if there can be none."""
        with self._lock:
            known = self._kept.get(text)
            if known is not None:
                self._kept.move_to_end(text)
                return known.deep_copy()
        made = self.anew(text)
        trial = made.deep_copy()
        if not trial.is_error():
            trial.compute_bitmask()  # much of the work is done only now
        if trial.is_error():
            raise GrammarError(_said(trial.get_error()))
        with self._lock:
            self._kept[text] = made.deep_copy()
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def _said(error: str) -> str:
    """The library's words, as far as they are for a client."""
    if error.startswith("panic"):
        return "it is too large"
    if error.startswith("NoExtension"):
        return "it allows no answer"
    lines = (line.strip() for line in error.splitlines())
    return next((line for line in lines if line), "it is wrong")[:300]
