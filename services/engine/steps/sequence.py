"""One generation in the engine: its tokens, how far they are computed, and where."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.messages import Finish, Odds, Sampling
from services.engine.steps.guide import Guide


class State(Enum):
    WAITING = "waiting"  # for a slot
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Sequence:
    request: str
    prompt_len: int
    tokens: list[int]  # the prompt and the answer so far
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    epoch: int = 0  # 0: the owner has not granted it yet; it may prefill its prompt but not answer
    slot: int = -1
    computed: int = 0  # tokens whose keys and values are in the slot
    cached: int = 0  # tokens of the prompt that did not have to be computed
    state: State = State.WAITING
    tenant: str = ""
    logprobs: int = -1  # how many of the likeliest tokens to tell of, beside the chosen one; -1: nothing
    echo: bool = False  # whether its prompt's odds are wanted too
    read: list[Odds] = field(default_factory=list)  # those, so far: of each token but the first
    grammar: str = ""
    guide: Guide | None = None  # follows it, as soon as it is ready
    edits: object = None  # the sampler's own, made of what stands above
    allowed: npt.NDArray[np.int32] | None = None  # what the next token may be, a bit for each; None: anything
    pooled: npt.NDArray[np.float64] | None = None  # what its vector is made of, so far
    drafter: Any = None  # the scheduler's, of this sequence
    chunks: list[tuple[float, int]] = field(default_factory=list)  # of its prefill: when, and tokens
    blocks: list[bytes] = field(default_factory=list)  # the names of its first ones (prefix.py)
    apart: bool = False  # its prompt is computed in another way than its answer: no chunk has tokens of both

    @property
    def granted(self) -> bool:
        """Whether it may answer, and can."""
        return self.epoch > 0 and (self.guide is None or self.guide.ready)

    @property
    def answered(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def reading(self) -> bool:
        """Whether odds of its prompt are still to be told: not of one whose answer others have begun."""
        return self.echo and not self.answered and len(self.read) < self.prompt_len - 1

    @property
    def unstoppable(self) -> bool:
        """Whether no stop token may be chosen yet."""
        return self.answered < self.min_tokens and bool(self.stop_ids)

    @property
    def computable(self) -> int:
        """Tokens a step may take now. The last one is withheld until the answer may begin."""
        left = len(self.tokens) - self.computed - (0 if self.granted else 1)
        return min(left, self.prompt_len - self.computed) if self._apart_yet else left

    @property
    def prefilling(self) -> bool:
        """Whether its next tokens are a chunk's: a lone token is, too, unless it can answer as a row."""
        return self.computable > (1 if self.granted and not self._apart_yet else 0)

    @property
    def alike(self) -> int:
        """Tokens whose keys and values any other sequence that begins so would have, too."""
        return self.prompt_len if self.apart else len(self.tokens)

    @property
    def _apart_yet(self) -> bool:
        return self.apart and self.computed < self.prompt_len

    def look(self) -> None:
        """What the next token may be is known."""
        if self.guide is not None:
            self.allowed = self.guide.allow(self.tokens, self.prompt_len)

    def append(self, token: int) -> Finish:
        self.tokens.append(token)
        if self.guide is not None and self.guide.failed:
            return "failed"
        if token in self.stop_ids and self.answered > self.min_tokens:
            return "stop"
        return "length" if self.answered >= self.max_tokens else ""
