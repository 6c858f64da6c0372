"""Choosing tokens: all rows of a step at once, and each choice a pure function of (seed, position).

A successor that resumes from the committed tokens therefore chooses what its predecessor would have.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.engine.sequence import Sequence

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest tokens of each row, best first; ties are in ascending order of id."""

    ids: Ints  # [rows, k]
    logits: Floats  # [rows, k]


Sampler = Callable[[Candidates, list[Sequence]], list[int]]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the input reaches every bit of the output."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX1
        x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def uniform(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The random number of each (seed, position), in [0, 1)."""
    with np.errstate(over="ignore"):
        bits = mix(mix(seeds + _GOLDEN) + (positions + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(candidates: Candidates, sequences: list[Sequence]) -> list[int]:
    """One token a row: temperature, top-k, top-p, then the inverse of the cumulated probabilities."""
    rows, k = candidates.ids.shape
    temperature = np.array([s.sampling.temperature for s in sequences])
    top_p = np.array([s.sampling.top_p for s in sequences])
    top_k = np.array([s.sampling.top_k or k for s in sequences])
    seeds = np.array([s.sampling.seed for s in sequences], dtype=np.uint64)
    positions = np.array([s.answered for s in sequences], dtype=np.uint64)

    logits = candidates.logits.astype(np.float64)
    for row, sequence in enumerate(sequences):
        if sequence.answered < sequence.min_tokens and sequence.stop_ids:
            logits[row, np.isin(candidates.ids[row], list(sequence.stop_ids))] = -np.inf
    order = np.argsort(-logits, axis=1, kind="stable")
    logits = np.take_along_axis(logits, order, axis=1)
    ids = np.take_along_axis(candidates.ids, order, axis=1)

    greedy = temperature <= 0
    scaled = (logits - logits[:, :1]) / np.where(greedy, 1.0, temperature)[:, None]
    weights = np.exp(scaled)
    weights[np.arange(k)[None, :] >= top_k[:, None]] = 0.0
    before = np.cumsum(weights, axis=1) - weights  # the mass of better candidates
    weights[before >= top_p[:, None] * weights.sum(axis=1, keepdims=True)] = 0.0
    weights[:, 0] = np.maximum(weights[:, 0], np.finfo(np.float64).tiny)  # top_p 0 still leaves the best
    cumulated = np.cumsum(weights, axis=1)
    mark = uniform(seeds, positions)[:, None] * cumulated[:, -1:]
    picked = np.minimum((cumulated <= mark).sum(axis=1), (weights > 0).sum(axis=1) - 1)
    picked[greedy] = 0
    chosen: list[int] = ids[np.arange(rows), picked].tolist()
    return chosen
