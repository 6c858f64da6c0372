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
from services.detokenizer.stops import StopMatcher

FORGET_S = 60.0
"""A request nobody spoke of for this long is over; the owner's Release was lost."""


class Decoder(Protocol):
    def step(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the owner; feed an Opened to `opened`, anything else to `refused`."""

    recall: m.Recall


Effect = m.Delta | m.Resend | Ask


@dataclass(slots=True)
class Transcript:
    """One request's text so far."""

    epoch: int
    engine: str
    decoder: Decoder
    matcher: StopMatcher
    heard_at: float
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: m.Finish = ""
    cached: int = 0

    def add(self, token: int, finish: m.Finish) -> None:
        """After a stop string or the end, nothing counts."""
        if self.finish:
            return
        text = self.matcher.feed(self.decoder.step(token))
        if finish and self.matcher.stopped is None:
            text += self.matcher.feed(self.decoder.finish())
            if self.matcher.stopped is None:
                text += self.matcher.flush()
        self.tokens.append(token)
        self.pieces.append(text)
        self.finish = "stop" if self.matcher.stopped is not None else finish

    def said(self, request: str, start: int) -> m.Said:
        cached = 0 if start else self.cached
        return m.Said(
            request, self.epoch, start, self.tokens[start:], self.pieces[start:], self.finish, cached
        )


class Scribe:
    def __init__(self, id: str, decoder: Callable[[bool], Decoder]):
        """`decoder(keep_special)` makes a fresh one."""
        self.id = id
        self.live: dict[str, Transcript] = {}
        self.counts: Counter[str] = Counter()
        self._decoder = decoder
        self._unknown: dict[str, list[tuple[str, m.Run]]] = {}  # runs waiting for the owner's answer

    def frame(self, frame: m.Frame, now: float) -> list[tuple[str, Effect]]:
        """What to send, and to whom: deltas by gateway, a resend by engine, questions by gateway."""
        said: dict[str, list[m.Said]] = {}
        effects: list[tuple[str, Effect]] = []
        for run in frame.runs:
            owner = m.owner_of(run.request)
            transcript = self.live.get(run.request)
            if transcript is None or transcript.epoch < run.epoch:
                waiting = self._unknown.setdefault(run.request, [])
                waiting.append((frame.engine, run))
                if len(waiting) == 1:
                    effects.append((owner, Ask(m.Recall(run.request, run.epoch, frame.engine))))
            elif self._fenced(transcript, run):
                self.counts["refused_stale"] += len(run.tokens)
            elif run.index > len(transcript.tokens):
                if not transcript.finish:
                    self.counts["gaps"] += 1
                    gap = m.Gap(run.request, run.epoch, len(transcript.tokens), self.id)
                    effects.append((frame.engine, m.Resend([gap])))
            else:
                transcript.heard_at = now
                self._hear(transcript, run)
                part = transcript.said(run.request, run.index)
                if part.tokens:
                    said.setdefault(owner, []).append(part)
        effects += [(owner, m.Delta(frame.engine, self.id, parts)) for owner, parts in said.items()]
        return effects

    @staticmethod
    def _fenced(transcript: Transcript, run: m.Run) -> bool:
        """Said by an engine that has lost the job since."""
        return run.epoch < transcript.epoch

    @staticmethod
    def _hear(transcript: Transcript, run: m.Run) -> None:
        if not transcript.tokens:
            transcript.cached = run.cached
        last = len(run.tokens) - 1
        for i in range(len(transcript.tokens) - run.index, len(run.tokens)):
            transcript.add(run.tokens[i], run.finish if i == last else "")

    def opened(self, opened: m.Opened, now: float) -> list[tuple[str, Effect]]:
        """Start, or start again, from what the owner has committed."""
        known = self.live.get(opened.request)
        if known is None or known.epoch < opened.epoch or len(known.tokens) < len(opened.committed):
            transcript = Transcript(
                opened.epoch,
                opened.engine,
                self._decoder(opened.keep_special),
                StopMatcher(tuple(opened.stops), opened.include_stop),
                now,
            )
            for token in opened.committed:
                transcript.add(token, "")
            self.live[opened.request] = transcript
        effects: list[tuple[str, Effect]] = []
        for engine, run in self._unknown.pop(opened.request, []):
            effects += self.frame(m.Frame(engine, [run]), now)
        return effects

    def refused(self, request: str) -> None:
        """The owner knows nothing of it, or did not answer: it will ask for a resend if it wants one."""
        self._unknown.pop(request, None)

    def release(self, release: m.Release) -> None:
        for ref in release.refs:
            known = self.live.get(ref.request)
            if known is not None and known.epoch <= ref.epoch:
                del self.live[ref.request]

    def tick(self, now: float) -> None:
        for request, transcript in list(self.live.items()):
            if now - transcript.heard_at > FORGET_S:
                self.counts["forgotten"] += 1
                del self.live[request]
