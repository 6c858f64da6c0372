"""Counts and distributions, and how Prometheus reads them. What is counted for a token allocates nothing."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

SECONDS = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15),
    *(0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
)
"""Fine enough around both a token of 5 ms and one of 500 ms, and as far as a request may take."""

TOKENS = tuple(float(n) for power in range(5) for n in (1 * 10**power, 2 * 10**power, 5 * 10**power))

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Kind = Literal["counter", "gauge", "histogram"]


class Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...], counts: Sequence[int] = (), total: float = 0.0):
        self.bounds = bounds
        self.counts = list(counts) or [0] * (len(bounds) + 1)  # each bucket's own; the last has no bound
        self.sum = total

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Family:
    """One metric with all its series. A counter's name is without its `_total`."""

    name: str
    kind: Kind
    help: str
    samples: list[tuple[Labels, float | Histogram]] = field(default_factory=list)


def text(families: Iterable[Family]) -> bytes:
    """Prometheus' text format, version 0.0.4."""
    return "".join(line for family in families if family.samples for line in _lines(family)).encode()


def _lines(family: Family) -> Iterator[str]:
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    yield f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"
    for labels, value in family.samples:
        own = ",".join(f'{key}="{_escaped(said)}"' for key, said in labels.items())
        if isinstance(value, Histogram):
            before, comma = 0, "," if own else ""
            for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
                before += count
                yield f'{name}_bucket{{{own}{comma}le="{_number(bound)}"}} {before}\n'
            yield f"{name}_sum{{{own}}} {_number(value.sum)}\n{name}_count{{{own}}} {before}\n"
        else:
            yield f"{name}{{{own}}} {_number(value)}\n" if own else f"{name} {_number(value)}\n"


_SPECIAL = re.compile(r'[\\"\n]')


def _escaped(value: str) -> str:
    return _SPECIAL.sub(lambda found: "\\n" if found[0] == "\n" else f"\\{found[0]}", value)


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
