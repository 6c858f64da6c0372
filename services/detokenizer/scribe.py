"""What a detokenizer knows of each live request, and how frames become deltas.

A pure state machine. Its state for a request is a function of the token ids alone, so a detokenizer that
has never heard of a request asks the owner for the committed ids, replays them, and goes on with the same
text. Pieces already made are kept: a run it has seen is answered again, and the owner drops what it has.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from millrace import messages as m
from millrace.subjects import Role
from services.detokenizer.stops import StopMatcher

FORGET_S = 60.0
"""A request nobody spoke of for this long is over; the owner's Release was lost."""

TOGETHER_S = 0.05
"""For so long after the last ones a patient request's tokens are kept, to be told together. No timer tells
them when their engine falls silent: its owner asks for what it is owed, as for what got lost."""


class Decoder(Protocol):
    def spell(self, token_id: int) -> bytes: ...

    def step(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the owner; feed an Opened to `opened`, anything else to `refused`."""

    recall: m.Recall


Effect = m.Delta | m.Resend | m.Hops | Ask


@dataclass(slots=True)
class Transcript:
    """One request's text so far. Nearly every token of nearly every answer is one that ends nothing, of a
    request without stop strings: what that takes is what the service can do."""

    owner: str
    epoch: int
    engine: str
    decoder: Decoder
    matcher: StopMatcher
    stops: bool  # it has stop strings
    heard_at: float
    began_at: float = 0.0  # its first token came; 0: not yet
    told: bool = False  # the owner knows how long it took
    patient: bool = False
    said_at: float = float("-inf")
    kept: int = 0  # from this index on nothing was said yet
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: m.Finish = ""
    cached: int = 0
    odds: dict[int, m.SpelledOdds] = field(default_factory=dict)  # by index, where they were told
    read: list[m.SpelledOdds] = field(default_factory=list)  # the prompt, where its odds were told

    def add(self, token: int, finish: m.Finish, odds: m.Odds | None = None) -> None:
        """After a stop string or the end, nothing counts."""
        if self.finish:
            return
        if odds is not None:
            self.odds[len(self.tokens)] = self._spelled(token, odds)
        text = self._matched(token, finish) if finish or self.stops else self.decoder.step(token)
        self.tokens.append(token)
        self.pieces.append(text)

    def _matched(self, token: int, finish: m.Finish) -> str:
        # The engine says 'stop' of a stop token, which is no part of the answer unless it was asked for.
        hidden = finish == "stop" and not self.matcher.include
        text = "" if hidden else self.matcher.feed(self.decoder.step(token))
        if finish and self.matcher.stopped is None:
            text += self.matcher.feed(self.decoder.finish())
            if self.matcher.stopped is None:
                text += self.matcher.flush()
        self.finish = "stop" if self.matcher.stopped is not None else finish
        return text

    def _spelled(self, token: int, odds: m.Odds) -> m.SpelledOdds:
        spell = self.decoder.spell
        best = zip(odds.best, odds.logprobs, strict=True)
        return m.SpelledOdds(
            m.Likely(spell(token), odds.logprob), [m.Likely(spell(id), logprob) for id, logprob in best]
        )

    def hear(self, read: m.Read) -> None:
        """The prompt. Of its first token there is nothing to say but its name."""
        odds = [m.Odds(0.0), *read.odds]
        self.read = [self._spelled(*each) for each in zip(read.tokens, odds, strict=True)]

    def keeps(self, now: float) -> bool:
        """Whether what is new is said later."""
        return self.patient and not self.finish and now - self.said_at < TOGETHER_S

    def say(self, request: str, index: int, now: float) -> m.Said:
        """From there on, and what was kept before."""
        part = self.said(request, min(index, self.kept))
        self.said_at, self.kept = now, len(self.tokens)
        return part

    def said(self, request: str, start: int) -> m.Said:
        tokens, pieces = self.tokens[start:], self.pieces[start:]
        if start and not self.finish and not self.odds:
            return m.Said(request, self.epoch, start, tokens, pieces)
        cached = 0 if start else self.cached
        odds = [self.odds.get(index) for index in range(start, len(self.tokens))] if self.odds else []
        stopped = self.matcher.stopped or ""
        read = [] if start else self.read
        return m.Said(
            request, self.epoch, start, tokens, pieces, self.finish, cached, odds, stopped, read=read
        )


class Scribe:
    def __init__(
        self, id: str, decoder: Callable[[bool], Decoder], wall: Callable[[float], float] = lambda at: at
    ):
        """`decoder(keep_special)` makes a fresh one; `wall` makes unix seconds of its times."""
        self.id = id
        self._wall = wall
        self.live: dict[str, Transcript] = {}
        self.counts: Counter[str] = Counter()
        self._decoder = decoder
        self._unknown: dict[str, list[tuple[str, m.Run]]] = {}  # runs waiting for the owner's answer

    def frame(self, frame: m.Frame, now: float) -> list[tuple[str, Effect]]:
        """What to send, and to whom: deltas by gateway, a resend by engine, questions by gateway."""
        said: dict[str, list[m.Said]] = {}
        effects: list[tuple[str, Effect]] = []
        for run in frame.runs:
            transcript = self.live.get(run.request)
            if transcript is None or transcript.epoch < run.epoch:
                owner = m.owner_of(run.request)
                waiting = self._unknown.setdefault(run.request, [])
                waiting.append((frame.engine, run))
                if len(waiting) == 1:
                    effects.append((owner, Ask(m.Recall(run.request, run.epoch, frame.engine))))
            elif self._fenced(transcript, run):
                # The owner lets it go once more: its word may have been lost.
                self.counts["refused_stale"] += len(run.tokens)
                effects.append((transcript.owner, Ask(m.Recall(run.request, run.epoch, frame.engine))))
            elif run.index > len(transcript.tokens):
                if not transcript.finish:
                    self.counts["gaps"] += 1
                    gap = m.Gap(run.request, run.epoch, len(transcript.tokens), self.id)
                    effects.append((frame.engine, m.Resend([gap])))
            else:
                transcript.heard_at = now
                transcript.began_at = transcript.began_at or now
                new = run.index == len(transcript.tokens)  # else it was asked for
                self._hear(transcript, run)
                if transcript.finish:
                    effects += self._tell(run.request, transcript, now)
                if new and transcript.keeps(now):
                    continue
                part = transcript.say(run.request, run.index, now)
                if part.tokens:
                    said.setdefault(transcript.owner, []).append(part)
        effects += [(owner, m.Delta(frame.engine, self.id, parts)) for owner, parts in said.items()]
        return effects

    def _tell(self, request: str, transcript: Transcript, now: float) -> list[tuple[str, Effect]]:
        """How long it took, once."""
        if transcript.told or not transcript.began_at:
            return []
        transcript.told = True
        hop = m.Hop(
            "detokenize",
            self._wall(transcript.began_at),
            self._wall(now),
            transcript.epoch,
            {"tokens": len(transcript.tokens)},
        )
        return [(m.owner_of(request), m.Hops(Role.DETOKENIZER, self.id, request, [hop]))]

    @staticmethod
    def _fenced(transcript: Transcript, run: m.Run) -> bool:
        """Said by an engine that has lost the job since."""
        return run.epoch < transcript.epoch

    @staticmethod
    def _hear(transcript: Transcript, run: m.Run) -> None:
        if not transcript.tokens:
            transcript.cached = run.cached
            if run.read is not None:
                transcript.hear(run.read)
        last = len(run.tokens) - 1
        for i in range(len(transcript.tokens) - run.index, len(run.tokens)):
            transcript.add(run.tokens[i], run.finish if i == last else "", run.odds[i] if run.odds else None)

    def opened(self, opened: m.Opened, now: float) -> list[tuple[str, Effect]]:
        """Start, or start again, from what the owner has committed."""
        known = self.live.get(opened.request)
        effects: list[tuple[str, Effect]] = []
        if known is None or known.epoch < opened.epoch or len(known.tokens) < len(opened.committed):
            transcript = Transcript(
                m.owner_of(opened.request),
                opened.epoch,
                opened.engine,
                self._decoder(opened.keep_special),
                StopMatcher(tuple(opened.stops), opened.include_stop),
                bool(opened.stops),
                now,
                patient=opened.patient,
                kept=len(opened.committed),
            )
            for token in opened.committed:
                transcript.add(token, "")
            self.live[opened.request] = transcript
            if known is not None:
                effects += self._tell(opened.request, known, now)
        for engine, run in self._unknown.pop(opened.request, []):
            effects += self.frame(m.Frame(engine, [run]), now)
        return effects

    def refused(self, request: str) -> None:
        """The owner knows nothing of it, or did not answer: it will ask for a resend if it wants one."""
        self._unknown.pop(request, None)

    def release(self, release: m.Release, now: float) -> list[tuple[str, Effect]]:
        effects: list[tuple[str, Effect]] = []
        for ref in release.refs:
            known = self.live.get(ref.request)
            if known is not None and known.epoch <= ref.epoch:
                effects += self._tell(ref.request, known, now)
                del self.live[ref.request]
        return effects

    def tick(self, now: float) -> None:
        for request, transcript in list(self.live.items()):
            if now - transcript.heard_at > FORGET_S:
                self.counts["forgotten"] += 1
                del self.live[request]
