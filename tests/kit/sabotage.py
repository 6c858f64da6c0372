"""The rules that keep a stream whole, each taken out on purpose: a checker must notice."""

import random

from msgspec import structs

from millrace import messages as m
from millrace.subjects import Send
from services.detokenizer import scribe
from services.detokenizer.scribe import Scribe, Transcript
from services.engine.choice.sample import Candidates
from services.engine.jobs import roster
from services.engine.jobs.roster import Hold, Roster
from services.engine.steps.sequence import Sequence
from services.gateway.owner.effects import Effect, Settle
from services.gateway.owner.entry import Entry
from services.gateway.owner.ledger import Ledger

# -- the owner


class EpochlessLedger(Ledger):
    @staticmethod
    def _current(entry: Entry, said: m.Said) -> bool:
        return True


class IndexlessLedger(Ledger):
    @staticmethod
    def _known(entry: Entry, said: m.Said) -> int:
        return 0


class KinlessLedger(Ledger):
    def _kept_waiting(self, entry: Entry, now: float) -> bool:
        return False


class LeaselessLedger(Ledger):
    def tick(self, now: float) -> list[Effect]:
        return [e for e in super().tick(now) if not (isinstance(e, Settle) and e.verb == "+WPI")]


class CrowdedLedger(Ledger):
    """Suspects run beside others."""

    def claim(self, claim: m.Claim, now: float) -> tuple[m.ClaimReply, list[Effect]]:
        reply, effects = super().claim(structs.replace(claim, busy=0), now)
        return structs.replace(reply, alone=False) if isinstance(reply, m.Granted) else reply, effects

    def _beside(self, entry: Entry, engine: str) -> bool:
        return False


class CarefreeLedger(Ledger):
    """Others are granted an engine that a suspect has for itself."""

    def _apart(self, engine: str) -> bool:
        return False


class LenientLedger(Ledger):
    """Every other lost engine is forgiven."""

    def _revoke(
        self, entry: Entry, reason: str, now: float, *, nak: bool = True, blame: bool = False
    ) -> list[Effect]:
        return super()._revoke(entry, reason, now, nak=nak, blame=blame and entry.epoch % 4 == 1)


class ShortLedger(Ledger):
    """A holder is not told of the last token that was committed before it."""

    def claim(self, claim: m.Claim, now: float) -> tuple[m.ClaimReply, list[Effect]]:
        reply, effects = super().claim(claim, now)
        if isinstance(reply, m.Granted):
            reply = structs.replace(reply, committed=reply.committed[:-1])
        return reply, effects


class PatientLedger(Ledger):
    def unanswered(self, id: str, *, gone: bool, now: float) -> list[Effect]:
        self._peers.unanswered(id, gone=gone, now=now)
        return []


class UngratefulLedger(Ledger):
    def yielded(self, yielded: m.Yielded, now: float) -> list[Effect]:
        return []


class ContentLedger(Ledger):
    """It asks for nothing twice."""

    def _resend(self, entry: Entry, now: float) -> list[Effect]:
        return []


class IndifferentLedger(Ledger):
    """What engines hold for nobody they may hold."""

    def holding(self, holding: m.Holding) -> m.Release:
        return m.Release([])


class CarelessLedger(Ledger):
    def missing(self, request: str) -> list[Effect]:
        return []


class ClingingLedger(Ledger):
    @staticmethod
    def _release(ref: m.Ref, engine: str, detokenizer: str, *, again: bool = False) -> list[Effect]:
        return []


# -- an engine


class ForgetfulRoster(Roster):
    """It begins every answer anew."""

    def _granted(self, hold: Hold, claim: m.Claim, reply: m.Granted, now: float) -> list[roster.Effect]:
        return super()._granted(hold, claim, structs.replace(reply, committed=[]), now)


class LateRoster(Roster):
    """What it sends again begins a token late, and says that it does not."""

    def resend(self, resend: m.Resend) -> list[roster.Effect]:
        return [
            Send(sent.subject, sent.to, m.Frame(self.id, [_beheaded(run) for run in sent.message.runs]))
            for sent in super().resend(resend)
            if isinstance(sent, Send) and isinstance(sent.message, m.Frame)
        ]


def _beheaded(run: m.Run) -> m.Run:
    return structs.replace(run, tokens=run.tokens[1:], odds=run.odds[1:])


class HoldingRoster(Roster):
    def release(self, release: m.Release, now: float) -> list[roster.Effect]:
        return []


class SilentRoster(Roster):
    """It leaves without a word."""

    def leave(self, now: float) -> list[roster.Effect]:
        super().leave(now)
        return []


# -- a detokenizer


class EpochlessScribe(Scribe):
    @staticmethod
    def _fenced(transcript: Transcript, run: m.Run) -> bool:
        return False


class RepeatingScribe(Scribe):
    """What it has heard before it hears again."""

    @staticmethod
    def _hear(transcript: Transcript, run: m.Run) -> None:
        for i, token in enumerate(run.tokens, 1):
            transcript.add(token, run.finish if i == len(run.tokens) else "")


class TruncatingScribe(Scribe):
    """It begins at what was committed, and not at what was held back of it."""

    def opened(self, opened: m.Opened, now: float) -> list[tuple[str, scribe.Effect]]:
        decoder = self._decoder
        self._decoder = lambda keep: Mute(decoder(keep), len(opened.committed))
        try:
            return super().opened(opened, now)
        finally:
            self._decoder = decoder


class Mute:
    """A decoder that is not told of its first tokens."""

    def __init__(self, decoder: scribe.Decoder, count: int):
        self._count = count
        self._decoder = decoder
        self.spell, self.finish = decoder.spell, decoder.finish

    def step(self, token_id: int) -> str:
        self._count -= 1
        return "" if self._count >= 0 else self._decoder.step(token_id)


class StubbornScribe(Scribe):
    """A new holder goes on where the old one was, not where the owner says."""

    def opened(self, opened: m.Opened, now: float) -> list[tuple[str, scribe.Effect]]:
        known = self.live.get(opened.request)
        if known is not None and known.epoch < opened.epoch and len(known.tokens) >= len(opened.committed):
            known.epoch, known.engine = opened.epoch, opened.engine
        return super().opened(opened, now)


class HoldingScribe(Scribe):
    def release(self, release: m.Release, now: float) -> list[tuple[str, scribe.Effect]]:
        return []


# -- the choice


_state = random.Random(0)


def choose_by_global_state(candidates: Candidates, sequences: list[Sequence]) -> list[int]:
    """What a sampler with one generator for all does: its choice depends on what it chose before."""
    return [int(row[_state.randrange(4)]) for row in candidates.ids]
