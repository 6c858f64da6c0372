"""What the clients of a world ask for, and what each of them got."""

import random
from dataclasses import dataclass, field
from typing import Any

from millrace import messages as m
from services.gateway.desk import Piece
from services.gateway.owner.entry import Entry
from tests.kit.tongue import POISON
from tests.kit.weather import Weather

EDITED: dict[str, Any] = {"repetition": 1.3, "presence": 0.5, "frequency": 0.4, "bias": {9: 11.0, 10: -2.0}}


@dataclass(frozen=True)
class Grant:
    """The gateway's word that an engine may go on from here."""

    epoch: int
    kind: int  # of that engine
    committed: list[int]
    had: int  # tokens the client had by then


@dataclass
class Wish:
    """What one client asks for, and what it got."""

    prompt: m.Prompt
    ids: list[int]
    stops: list[str]
    at: float
    cancel_after: float | None
    got: list[Piece] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)  # in which each of them counted
    grants: list[Grant] = field(default_factory=list)
    entry: Entry | None = None
    cancelled: bool = False
    ends: int = 0
    ended_at: float = 0.0

    @property
    def poison(self) -> bool:
        return self.prompt.sampling.seed == POISON


def wished(
    index: int, r: random.Random, wants: random.Random, weather: Weather, poison: float, *, vector: bool
) -> Wish:
    """`wants`: what it draws changes nothing about the faults. `poison`: how often one crashes its engine."""
    ids = [r.randrange(8, 250) for _ in range(r.randint(1, r.choice([40, 40, 200])))]
    if index % 2:
        ids = [*range(50, 100 + index), *ids]  # a beginning that others have too
    poisoned = r.random() < poison
    sampling = m.Sampling(
        POISON if poisoned else r.getrandbits(60),
        r.choice([0.0, 0.7, 1.3]),
        r.choice([1.0, 0.9]),
        r.choice([0, 5]),
        **wants.choice([{}, {}, EDITED]),
    )
    # some answers outlast the faults, so that a holder cut off meanwhile comes back to a live request
    length = 1 if vector else r.randint(1, r.choice(weather.answers))
    prompt = m.Prompt(
        f"gw-{index:032x}",
        1,
        "sim",
        m.Ids(ids),
        sampling,
        length,
        logprobs=-1 if vector else wants.choice([-1, -1, 2]),
    )
    cancel = r.uniform(0, 1) if r.random() < 0.15 else None
    stops = [f"{r.randrange(0, 10)}."] if r.random() < 0.3 else []
    return Wish(prompt, ids, stops, max(r.uniform(0, 2), weather.opens_at), cancel)
