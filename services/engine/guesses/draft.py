"""Guesses by a smaller model with the same words: it goes ahead of a sequence, in a slot of its own.

It chooses by the sampler that will judge its guesses, with the same random number for the same place: where
both models weigh the words alike, both choose the same, however high the temperature. What it holds is the
beginning of the sequence that was guessed for last. What was not said after all is forgotten, and what was
said without it is caught up on, a chunk a step, so that nobody who joins waits for longer than that.

Nothing that it computes gets into an answer but by being chosen by the engine's own model.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from millrace import cache, models, settings
from services.engine.choice.edits import Edits
from services.engine.choice.sample import Candidates, Sampler, choose
from services.engine.guesses.lookup import Lookup
from services.engine.guesses.worth import Mean, Rest, best, price
from services.engine.loop import Model
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence, State

HOPE = 0.5
"""The share of right guesses that is assumed of a draft as long as nothing is known of it."""

SEQUENCES, STEPS = 64, 16
"""How far back it is looked: for what is right, over several sequences; for what takes how long, not far."""

TRUST = 4
"""Guesses of a sequence that weigh as much as what is known of the draft from all others."""

MEMORY = 0.95
"""What a guess still counts for after the next one: a text changes."""

FIRST = 0.3
"""Of a step of the engine's model: what a step of the draft is taken to cost before both were measured."""

OUTLAY = 0.25
"""Of what a sequence may still say: steps that catching up may cost, as guesses can hardly win back more."""

PROBE = 2.0
"""Steps that catching up may cost where guessing does not pay, only to see whether it does by now."""


log = logging.getLogger("millrace.engine")


def opened(draft: models.Model, of: models.Model, model: Model, given: settings.Engine) -> "Draft":
    """SettingError if it cannot be computed."""
    from services.engine.model import prepare, session  # noqa: PLC0415 - ONNX, which takes a second

    root = cache.root()
    with settings.at_fault(f"--draft {given.draft}"):
        ready = prepare.converted(draft, root)
    graphs = prepare.prepared(ready, root)
    made = session.OrtModel(
        ready, 1, given.chunk, max_len=given.max_len, graphs=graphs, spin_us=given.spin_us
    )
    assert isinstance(model, session.OrtModel)
    log.info("%s guesses for %s", draft.name, of.name)
    return Draft(made, min(model.card.vocab, made.card.vocab), made.max_len, given.chunk)


class Computes(Protocol):
    def run(self, step: Step) -> Candidates: ...


class Draft:
    """The model and its slot, which is that of the sequence that was guessed for last."""

    def __init__(
        self,
        model: Computes,
        vocab: int,
        max_len: int,
        chunk: int,
        clock: Callable[[], float] = time.perf_counter,
        sampler: Sampler = choose,
    ):
        """`vocab`: ids below are words of both models, whose tables may have room for more."""
        self.clock = clock
        self.share = Mean(SEQUENCES, HOPE)  # of guesses that were right, of all sequences
        self._model = model
        self._vocab = vocab
        self._max_len = max_len
        self._chunk = chunk
        self._sampler = sampler
        self._of: Sequence | None = None
        self._twin: Sequence | None = None  # the same, and behind it what was guessed last
        self._ahead = 0  # tokens of the twin that were guessed
        self._step = Mean(STEPS)  # seconds for a guess
        self._fill = Mean(STEPS)  # seconds for a token that is caught up on
        self._lone = Mean(STEPS)  # seconds of a step of the engine's model, for a lone row

    def drafter(self) -> "Guesser":
        return Guesser(self)

    @property
    def cost(self) -> float:
        """Of a guess, in steps of a lone row."""
        return self._step.value / self._lone.value if self._step.value and self._lone.value else FIRST

    def took(self, seconds: float, guesses: int, length: int) -> None:
        """A step of the engine's model that verified so many guesses."""
        self._lone.add(seconds / (1 + guesses * price(length)))

    def outlay(self, sequence: Sequence) -> float:
        """What catching up on it would cost, in steps of a lone row."""
        if not (self._fill.value and self._lone.value):
            return 0.0
        known = self._twin.computed if self._twin and self._of is sequence else self._common(sequence)
        return (len(sequence.tokens) - known) * self._fill.value / self._lone.value

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        """None as long as it catches up, or where it cannot follow."""
        if len(sequence.tokens) + most > self._max_len:
            return []
        twin = self._follow(sequence)
        behind = len(twin.tokens) - twin.computed
        if max(twin.tokens[twin.computed :]) >= self._vocab:
            return []
        began = self.clock()
        if behind > self._chunk:
            self._model.run(Step([], Chunk(twin, twin.computed, self._chunk)))
            twin.computed += self._chunk
            self._fill.add((self.clock() - began) / self._chunk)
            return []
        step = Step([], Chunk(twin, twin.computed, behind)) if behind > 1 else Step([twin], None)
        while self._ahead < most:
            candidates = self._model.run(step)
            twin.computed = len(twin.tokens)
            twin.look()
            (token,) = self._sampler(candidates, [twin])
            if token >= self._vocab:
                break
            if twin.append(token):  # nothing comes after it, so nothing is won by guessing it
                twin.tokens.pop()
                break
            self._ahead += 1
            step = Step([twin], None)
        if behind <= 2 and self._ahead:
            self._step.add((self.clock() - began) / self._ahead)
        return twin.tokens[len(twin.tokens) - self._ahead :]

    def _follow(self, sequence: Sequence) -> Sequence:
        """The twin, with the sequence's own tokens alone."""
        twin = self._twin
        if twin is None or self._of is not sequence:
            assert self._of is None or self._of.state is State.ENDED, "the draft's slot is another sequence's"
            twin = self._twin = _twin(sequence, self._common(sequence))
            self._of = sequence
        else:
            at = len(twin.tokens) - self._ahead
            end = min(len(twin.tokens), len(sequence.tokens))
            while at < end and twin.tokens[at] == sequence.tokens[at]:
                at += 1
            if isinstance(twin.edits, Edits):
                twin.edits.forget(twin.tokens, at)
            twin.tokens[at:] = sequence.tokens[at:]
            twin.computed = min(twin.computed, at, len(twin.tokens) - 1)
        self._ahead = 0
        twin.guide = sequence.guide and sequence.guide.twin()
        assert len(twin.tokens) == len(sequence.tokens) and twin.tokens[-1] == sequence.tokens[-1]
        return twin

    def _common(self, sequence: Sequence) -> int:
        """Of what the slot holds, the tokens that this sequence begins with. Another tenant's are not asked
        for: nobody is to find out by its speed what others have said."""
        twin = self._twin
        if twin is None or twin.tenant != sequence.tenant:
            return 0
        pairs = zip(twin.tokens[: twin.computed], sequence.tokens[:-1], strict=False)
        return next(
            (at for at, (a, b) in enumerate(pairs) if a != b), min(twin.computed, len(sequence.tokens) - 1)
        )


def _twin(of: Sequence, computed: int) -> Sequence:
    return Sequence(
        of.request,
        of.prompt_len,
        list(of.tokens),
        of.sampling,
        of.max_tokens,
        of.min_tokens,
        of.stop_ids,
        epoch=1,
        slot=0,
        computed=computed,
        state=State.RUNNING,
        tenant=of.tenant,
    )


class Guesser:
    """Guesses for one sequence: looked up, where its words were said before; else by the draft."""

    def __init__(self, draft: Draft):
        self._draft = draft
        self._lookup = Lookup()
        self._looked_up = False
        self._rest = Rest()
        self._right = self._tried = 0.0
        self._probing = False
        self._guessed_at = 0.0

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        found = self._lookup.guess(sequence, most)
        self._looked_up = bool(found)
        if not found and (count := self._count(sequence, most)):
            found = self._draft.guess(sequence, count)
        self._guessed_at = self._draft.clock()
        return found

    def _count(self, sequence: Sequence, most: int) -> int:
        length = len(sequence.tokens)
        if not self._rest.over(length):
            return 0
        cost = price(length) + self._draft.cost
        count = best(self._share, most, cost)
        if count:
            self._rest.won()
        elif not self._probing:
            self._pause(sequence)
            return 0
        may = OUTLAY * (sequence.max_tokens - sequence.answered) if count else PROBE
        if self._draft.outlay(sequence) > may:
            self._pause(sequence)
            return 0
        return count or 1

    @property
    def _share(self) -> float:
        return (self._right + TRUST * self._draft.share.value) / (self._tried + TRUST)

    def _pause(self, sequence: Sequence) -> None:
        self._rest.begin(len(sequence.tokens))
        self._probing = True

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        """So many of the guesses were right."""
        length = len(sequence.tokens)
        self._draft.took(self._draft.clock() - self._guessed_at, guessed, length)
        if self._looked_up:
            self._lookup.judged(sequence, guessed, right)
            return
        for won in [1.0] * right + [0.0] * (right < guessed):
            self._right, self._tried = self._right * MEMORY + won, self._tried * MEMORY + 1
            self._draft.share.add(won)
        self._probing = False
