"""What goes into the next step: two queues and two methods, no model and no clock.

Decoding comes first: every running sequence with one token to compute is a row of the step. Beside them
one chunk of one prompt may be computed, so a long prompt delays the others by a bounded time a step. Tenants
take turns with their prompts: who comes with one is not behind all that another brought.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

from msgspec import Struct, structs

from millrace.messages import VECTOR, Finish, Odds
from services.engine.steps.prefix import BLOCK, Prefixes
from services.engine.steps.rota import Rota
from services.engine.steps.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Chunk:
    sequence: Sequence
    start: int
    count: int
    guesses: tuple[int, ...] = ()  # behind the sequence's own tokens; they are counted

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.start + self.count], *self.guesses]

    @property
    def heard(self) -> range:
        """The tokens of the prompt whose odds the chunk tells, by their places: those behind its own."""
        if self.guesses or not self.sequence.reading:
            return range(0)
        return range(self.start + 1, min(self.start + self.count + 1, self.sequence.prompt_len))

    @property
    def last(self) -> bool:
        """Whether the next token can be sampled after it."""
        behind = self.start + self.count - len(self.guesses)
        return self.sequence.granted and behind == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class Swap:
    """Two slots exchange what they hold: so many tokens each."""

    first: int
    first_tokens: int
    second: int
    second_tokens: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Consecutive blocks of a slot, from this token on, go to these places in the pool."""

    slot: int
    start: int
    places: list[int]


@dataclass(frozen=True, slots=True)
class Load:
    """The same way back."""

    slot: int
    start: int
    places: list[int]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Blocks that came from the shelf go to a slot."""

    slot: int
    start: int
    contents: list[Any]


@dataclass(frozen=True, slots=True)
class Shelve:
    """A block goes from its place in the pool to the shelf."""

    name: bytes
    place: int


Copy = Keep | Load | Fetch | Shelve


@dataclass(frozen=True, slots=True)
class Step:
    rows: list[Sequence]  # one token each; they hold the first slots, in any order
    chunk: Chunk | None
    swaps: tuple[Swap, ...] = ()  # to be done first
    copies: tuple[Copy, ...] = ()  # to be done in this order, and before the swaps
    others: tuple[Sequence, ...] = ()  # running, in the slots behind the rows'

    @property
    def sequences(self) -> list[Sequence]:
        return [*self.rows, self.chunk.sequence] if self.chunk else self.rows

    @property
    def guesses(self) -> tuple[int, ...]:
        """What the chunk's sequence may say next. The model's candidates for what follows each come
        behind those of the samples."""
        return self.chunk.guesses if self.chunk else ()

    @property
    def heard(self) -> range:
        """Of the chunk's prompt; the model's candidates for these come behind those for the guesses."""
        return self.chunk.heard if self.chunk else range(0)

    @property
    def samples(self) -> list[Sequence]:
        """Whose next token this step decides, in the order of the model's candidates."""
        return self.sequences if self.chunk and self.chunk.last else self.rows


class Output(Struct, frozen=True):
    """One token of a step."""

    request: str
    epoch: int
    index: int
    token: int
    finish: Finish
    cached: int = 0  # tokens of the prompt that did not have to be computed
    odds: Odds | None = None
    vector: bytes = b""  # in place of a text


class Drafter(Protocol):
    """Guesses at one sequence's next tokens."""

    def guess(self, sequence: Sequence, most: int) -> list[int]: ...

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        """So many of the guesses were right."""
        ...


GUESSES = 7
"""At once. With the token that has to be computed anyway that is eight: more take the matrices longer."""


class Scheduler:
    def __init__(
        self,
        slots: int,
        chunk: int,
        prefixes: Prefixes | None = None,
        drafter: Callable[[], Drafter] | None = None,
        *,
        apart: bool = False,
    ):
        """`apart`: the model computes prompts in another way than answers."""
        self.counts: Counter[str] = Counter()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._by_request: dict[str, Sequence] = {}
        self._free = set(range(slots))
        self._slots = slots
        self._chunk = chunk
        self._prefixes = prefixes
        self._drafter = drafter
        self._apart = apart
        self._rota = Rota()
        self._copies: list[Copy] = []  # for the next step, whenever that is

    # -- in and out

    def add(self, sequence: Sequence) -> None:
        assert sequence.request not in self._by_request, sequence.request
        sequence.apart = self._apart
        self._by_request[sequence.request] = sequence
        self.waiting.append(sequence)

    def grant(self, request: str, epoch: int, committed: list[int]) -> None:
        """It may answer from here; what an earlier holder had committed is part of its tokens."""
        sequence = self._by_request.get(request)
        if sequence is not None:
            sequence.epoch = epoch
            sequence.tokens += committed

    def drop(self, request: str) -> None:
        sequence = self._by_request.get(request)
        if sequence is not None:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        del self._by_request[sequence.request]
        if sequence.state is State.RUNNING:
            self._keep(sequence)
            self.running.remove(sequence)
            self._free.add(sequence.slot)
        else:
            self.waiting.remove(sequence)
        sequence.state = State.ENDED
        assert len(self._free) + len(self.running) == self._slots, "a slot leaked"

    # -- a step

    def schedule(self) -> Step | None:
        while self.waiting and self._free:
            sequence = self.waiting.popleft()
            # The first free slot is, mostly, the one that it will need as a row.
            sequence.slot, sequence.state = min(self._free), State.RUNNING
            self._free.remove(sequence.slot)
            self.running.append(sequence)
        # One prompt a step. When its turn comes, what others have computed of it by then is taken from
        # them: of several with the same beginning the first computes it, in the others' stead.
        chunk = None
        for sequence in self._turn():
            self._load(sequence)
            if sequence.prefilling:
                chunk = Chunk(sequence, sequence.computed, min(sequence.computable, self._chunk))
                self._rota.had(sequence.tenant)
                break
        # A one-token prompt is a row like any other, once it may answer, unless prompts are computed apart.
        rows = [s for s in self.running if s.granted and s.computable == 1 and not s.prefilling]
        if not (rows or chunk):
            return None
        if len(rows) == 1 and not chunk and (chunk := self._guessed(rows[0])):
            rows = []
        copies, self._copies = tuple(self._copies), []
        swaps = tuple(self._gather(rows))
        others: tuple[Sequence, ...] = ()
        if len(self.running) > len(rows):
            others = tuple(s for s in self.running if s.slot >= len(rows))
        return Step(rows, chunk, swaps, copies, others)

    def _turn(self) -> list[Sequence]:
        """Those with a prompt to compute, whose turn is longest ago first, and of each tenant the oldest."""
        reading = [s for s in self.running if s.prefilling]
        return sorted(reading, key=lambda s: self._rota.last(s.tenant)) if len(reading) > 1 else reading

    def _guessed(self, row: Sequence) -> Chunk | None:
        """A lone row becomes a chunk, with what it may say next; what turns out wrong is written over. Beside
        others it stays a row: they would all wait for its guesses, and it alone would gain by them."""
        most = min(GUESSES, row.max_tokens - row.answered - 1, self._chunk - 1)
        if self._drafter is None or most < 1:
            return None
        if row.drafter is None:
            row.drafter = self._drafter()
        guesses = tuple(row.drafter.guess(row, most))
        return Chunk(row, row.computed, 1 + len(guesses), guesses) if guesses else None

    def _load(self, sequence: Sequence) -> None:
        if self._prefixes is None or sequence.reading:  # what is not computed has no odds
            return
        first = sequence.computed // BLOCK
        places, contents = self._prefixes.find(sequence, first)
        known = (first + len(places) + len(contents)) * BLOCK
        if known <= sequence.computed:
            return
        if places:
            self._copies.append(Load(sequence.slot, first * BLOCK, places))
        if contents:
            self._copies.append(Fetch(sequence.slot, (first + len(places)) * BLOCK, contents))
        sequence.cached += max(0, min(known, sequence.prompt_len) - sequence.computed)
        sequence.computed = known

    def _keep(self, sequence: Sequence) -> None:
        if self._prefixes is None:
            return
        first, places, going = self._prefixes.keep(sequence)
        self._copies += [Shelve(name, place) for name, place in going]
        if places:
            self._copies.append(Keep(sequence.slot, first * BLOCK, places))

    def put_away(self) -> list[Copy]:
        """When nothing runs any more: what is to be copied, so that all that is kept lies on the shelf."""
        copies, self._copies = self._copies, []
        if self._prefixes is not None:
            copies += [Shelve(name, place) for name, place in self._prefixes.left()]
        return copies

    def _gather(self, rows: list[Sequence]) -> Iterator[Swap]:
        """Bring the rows into the first slots: a model computes a batch over consecutive ones.

        It happens about once in a sequence's life, and costs what reading its keys and values costs.
        """
        holder = {s.slot: s for s in self.running}
        holes = iter(sorted(set(range(len(rows))) - {row.slot for row in rows}))
        for row in rows:
            if row.slot >= len(rows):
                here, there = row.slot, next(holes)
                if other := holder.get(there):
                    other.slot = here
                else:
                    self._free.remove(there)
                    self._free.add(here)
                row.slot = there
                yield Swap(here, row.computed, there, other.computed if other else 0)

    def postprocess(
        self, step: Step, tokens: list[int], odds: list[Odds | None] | None = None
    ) -> list[Output]:
        """The step has run, and these are the tokens of its samples, and their odds, if any is wanted."""
        samples = self._advance(step)
        wanted = zip(samples, tokens, odds or repeat(None, len(tokens)), strict=True)
        return [self._say(sequence, token, told) for sequence, token, told in wanted]

    def embedded(self, step: Step, vectors: list[bytes]) -> list[Output]:
        """The same of a model that makes vectors: each is an answer of one token, and is told with it."""
        wanted = zip(self._advance(step), vectors, strict=True)
        return [
            structs.replace(self._say(sequence, VECTOR, None), vector=vector) for sequence, vector in wanted
        ]

    def _advance(self, step: Step) -> list[Sequence]:
        """Its samples, with their tokens computed."""
        samples = step.samples
        for row in step.rows:
            row.computed += 1
        if step.chunk:
            step.chunk.sequence.computed += step.chunk.count - len(step.guesses)
            if not step.guesses:
                self._keep(step.chunk.sequence)
        return samples

    def go_on(self, sequence: Sequence, token: int, odds: Odds | None) -> Output:
        """The last token had been guessed, so it is computed, and this is the next."""
        sequence.computed += 1
        return self._say(sequence, token, odds)

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        """So many guesses of the step were right."""
        self.counts["guessed"] += guessed
        self.counts["guessed_right"] += right
        sequence.drafter.judged(sequence, guessed, right)

    def _say(self, sequence: Sequence, token: int, odds: Odds | None) -> Output:
        index = sequence.answered
        finish = sequence.append(token)
        if finish:
            self._end(sequence)
        return Output(sequence.request, sequence.epoch, index, token, finish, sequence.cached, odds)
