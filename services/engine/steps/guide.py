"""Answers that have to keep to a grammar: what the next token of each may be.

Where a guide is, is a function of its grammar and of the answer's tokens so far. A sequence that is resumed
elsewhere is guided on from the tokens that were committed, as if nothing had happened.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # loaded when first needed: the start does not wait for it
    from llguidance import LLMatcher

    from millrace.grammar import Grammars

STACK = 64 << 20
"""Of the thread that compiles. The tokenizer has tried every grammar on an eighth of it."""

Mask = npt.NDArray[np.int32]


class Guide:
    """Of one sequence."""

    def __init__(self) -> None:
        self.ready = False
        self.failed = False  # a dead end, or more work than is allowed: nothing can be said of the next token
        self._matcher: LLMatcher | None = None
        self._read = 0  # tokens of the answer
        self._mask: Mask | None = None  # of what may come after these; None: not computed yet
        self._anew: Callable[[], LLMatcher] | None = None
        self._room: Mask = np.zeros(0, np.int32)
        self._place = 0, 0  # of the room: its address and its size

    def begin(
        self, matcher: "LLMatcher | None", tokens: int, anew: "Callable[[], LLMatcher] | None" = None
    ) -> None:
        """`tokens`: how many its grammar knows. Without a matcher it has failed. `anew` makes it one of its
        own."""
        self._matcher, self.failed, self._anew = matcher, matcher is None, anew
        self._room = np.zeros((tokens + 31) // 32, np.int32)
        self._place = self._room.ctypes.data, self._room.nbytes
        self.ready = True

    def twin(self) -> "Guide":
        """One at the same place, that goes its own way."""
        made = Guide()
        made.begin(self._matcher and self._matcher.deep_copy(), 32 * len(self._room))
        made._read = self._read
        return made

    def allow(self, tokens: list[int], prompt: int) -> Mask | None:
        """A bit for each word that the grammar knows: whether it may come after these tokens, of which so
        many are the prompt's. Good until it is asked for another place."""
        matcher = self._matcher
        if self.failed or matcher is None:
            return None
        read = len(tokens) - prompt
        if self._mask is None or read != self._read:
            matcher.consume_tokens(tokens[prompt + self._read :])
            self._read = read
            matcher.unsafe_compute_mask_ptr(*self._place)
            if matcher.is_error() and self._anew is not None:
                matcher = self._matcher = self._step_by_step(self._anew, tokens[prompt:])
                self._anew = None
            self.failed = matcher.is_error()
            self._mask = None if self.failed else self._room
        return self._mask

    def _step_by_step(self, anew: "Callable[[], LLMatcher]", answer: list[int]) -> "LLMatcher":
        """As if nobody else had this grammar, and the whole answer had been given here. What a step may cost
        is limited: where nothing was built before, as by who takes over in the midst, the same place may be
        too much; and all copies of a matcher share what they have built, and that it was too much."""
        matcher = anew()
        for token in answer:
            matcher.unsafe_compute_mask_ptr(*self._place)
            matcher.consume_token(token)
        matcher.unsafe_compute_mask_ptr(*self._place)
        return matcher


class Guides:
    """Makes them, beside the steps: a grammar may take a tenth of a second to compile."""

    def __init__(self, folder: Path, made: Callable[[], object]):
        """`made` is called, in another thread, whenever a guide has become ready."""
        self._folder = folder
        self._made = made
        self._grammars: Grammars | None = None
        self._worker: ThreadPoolExecutor | None = None

    def prepare(self) -> None:
        """So that the first need not wait for the vocabulary; returns at once."""
        self._thread().submit(self._loaded)

    def of(self, grammar: str) -> Guide:
        guide = Guide()
        self._thread().submit(self._begin, guide, grammar)
        return guide

    def _thread(self) -> ThreadPoolExecutor:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "grammars")
            before = threading.stack_size(STACK)
            try:
                self._worker.submit(int).result()
            finally:
                threading.stack_size(before)
        return self._worker

    def _loaded(self) -> "Grammars":
        from millrace.grammar import Grammars  # noqa: PLC0415 - see above

        if self._grammars is None:
            self._grammars = Grammars(self._folder)
        _ = self._grammars.tokens
        return self._grammars

    def _begin(self, guide: Guide, grammar: str) -> None:
        try:
            grammars = self._loaded()
            matcher, size = grammars.matcher(grammar), grammars.tokens.vocab_size
            guide.begin(matcher, size, lambda: self._thread().submit(grammars.anew, grammar).result())
        except ValueError:  # the tokenizer took it: its machine is another one, or a busy one
            guide.begin(None, 0)
        self._made()
