"""Fast mode: the prompt that is being computed, in fp32, as its graphs (millrace/convert/fast.py) want it.

It holds one sequence's keys and values, as its slot has them. Whoever's turn is next, what is not here is
widened from the slot; so nothing has to be put away when another comes between, ends, or changes slots.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.convert.card import Card
from millrace.convert.network import Form
from millrace.convert.runtime import ort
from services.engine.model.device import Bound, bound
from services.engine.model.near import Cache, mapped
from services.engine.steps.scheduler import Chunk
from services.engine.steps.sequence import Sequence

Array = npt.NDArray[Any]


class Staging:
    def __init__(
        self, of: Card, cache: Cache, scales: Array, chunk: int, sessions: dict[Form, ort.InferenceSession]
    ):
        """`scales`: what a step of 8 bits is worth, [layers, 2, kv_heads, 1, head_dim]; `chunk`: the most
        tokens that come at once."""
        self.sessions = sessions
        self._cache = cache
        self._scales = scales
        self._heads = of.kv_heads, of.head_dim
        self._wide = mapped(np.dtype(np.float32), of.layers, 2, of.kv_heads, cache.max_len, of.head_dim)
        self._codes = np.zeros((of.layers, 2, max(2, chunk) * of.kv_heads * of.head_dim), np.int8)
        self._start = np.zeros(1, np.int64)
        self._flat = np.array([-1], np.int64)
        self._of: Sequence | None = None
        self._held = 0  # tokens of it

    @staticmethod
    def takes(chunk: Chunk) -> bool:
        """An answer that somebody else began is computed as he did it."""
        return chunk.start < chunk.sequence.prompt_len

    def begin(self, chunk: Chunk) -> Chunk:
        """What is to be computed now. ONNX Runtime takes the sums of a lone token in another order than those
        of several, so that one is computed together with the one before it, again."""
        sequence, start, count = chunk.sequence, chunk.start, chunk.count
        assert start + count <= sequence.prompt_len, "a chunk has tokens of a prompt and of its answer"
        if count == 1 and start:
            start, count = start - 1, 2
        if self._of is not sequence:
            self._of, self._held = sequence, 0
        if self._held < start:
            new = slice(self._held, start)
            for wide, codes, scales in zip(
                self._wide, self._cache.slot(sequence.slot), self._scales, strict=True
            ):
                np.multiply(codes[:, :, new], scales, out=wide[:, :, new])
        self._start[0], self._held = start, start + count
        return Chunk(sequence, start, count)

    def end(self) -> None:
        """It is computed: its codes go to its slot."""
        assert self._of is not None
        heads, dim = self._heads
        start = int(self._start[0])
        count = self._held - start
        codes = self._codes[:, :, : count * heads * dim].reshape(*self._codes.shape[:2], count, heads, dim)
        self._cache.slot(self._of.slot)[:, :, :, start : self._held] = codes.swapaxes(2, 3)

    # -- the graphs' memory

    def bound(self, layer: int, kv: int, first: int, count: int) -> Bound:
        return bound(self._wide[layer, kv][None])

    def inputs(self) -> dict[str, Bound]:
        return {"chunk.start": bound(self._start), "chunk.flat": bound(self._flat)}

    def outputs(self, count: int) -> dict[str, Bound]:
        """For a chunk of so many tokens."""
        width = self._heads[0] * self._heads[1]
        return {
            f"chunk.{name}.{layer}.codes": bound(codes[: count * width].reshape(1, count, width))
            for layer, both in enumerate(self._codes)
            for name, codes in zip("kv", both, strict=True)
        }
