"""Steps of rows in few shapes, so that a GPU may record each once and replay it: a CUDA graph.

A replay does what was recorded, at the addresses that were recorded. Inputs, outputs, keys and values lie at
fixed ones; what else a kernel was told on the host must be the same, which is the batch, and the longest
context it is to reach. So rows are filled up to a batch size, and their reach is rounded up. Only the thread
that recorded a step replays it: another records its own.
"""

LEAST = 256
"""Tokens; a shorter reach saves nothing."""


class Shapes:
    def __init__(self, slots: int, max_len: int):
        self._batches = [1 << i for i in range((slots - 1).bit_length())] + [slots]
        self._max_len = max_len
        self._known: dict[tuple[int, int], int] = {}

    def batch(self, rows: int) -> int:
        return next(size for size in self._batches if size >= rows)

    def reach(self, longest: int) -> int:
        return min(self._max_len, max(LEAST, 1 << (longest - 1).bit_length()))

    def name(self, batch: int, reach: int) -> int:
        """Of the recording for these; ONNX Runtime's own is 0."""
        return self._known.setdefault((batch, reach), len(self._known) + 1)
