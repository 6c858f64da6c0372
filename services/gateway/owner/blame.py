"""What a request has done to engines: whether it has to run alone, and when it is given up.

Who crashes an engine takes down all that run beside it, and nobody can tell which of them it was. So what
loses engines too often in company is suspected, and runs alone; and what befalls an engine that a request has
for itself is taken to be its doing. For nothing else is one given up.
"""

from dataclasses import dataclass, field, replace

SUSPECT_STRIKES, SUSPECT_DEATHS = 2, 4
CAP_STRIKES, CAP_DEATHS = 3, 8  # alone
"""A strike is an engine lost before it had made a token of the request. Losses with progress between them are
bad luck for long, but not for ever: a job may crash at a late token. What runs alone harms nobody else, and
engines die of other things too: three in a row are needed."""


@dataclass(frozen=True, slots=True)
class Loss:
    engine: str
    dead: bool  # as far as we know, because nobody listens there
    alone: bool  # the request had that engine for itself
    strike: bool


@dataclass(slots=True)
class Blame:
    losses: list[Loss] = field(default_factory=list)

    def lost(self, engine: str, *, dead: bool, alone: bool, went_on: bool) -> None:
        """`went_on`: it had made a token there, which clears what came before."""
        if went_on:
            self.losses = [replace(loss, strike=False) for loss in self.losses]
        self.losses.append(Loss(engine, dead, alone, not went_on))

    def acquit(self, engine: str) -> None:
        """It speaks again: a link was lost, and not the engine."""
        if self.losses:
            self.losses = [loss for loss in self.losses if not (loss.dead and loss.engine == engine)]

    @property
    def deaths(self) -> int:
        return len(self.losses)

    @property
    def strikes(self) -> int:
        return sum(loss.strike for loss in self.losses)

    @property
    def suspect(self) -> bool:
        return self.strikes >= SUSPECT_STRIKES or self.deaths >= SUSPECT_DEATHS

    @property
    def hopeless(self) -> bool:
        alone = [loss for loss in self.losses if loss.alone]
        return sum(loss.strike for loss in alone) >= CAP_STRIKES or len(alone) >= CAP_DEATHS
