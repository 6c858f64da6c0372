"""The rules that keep a stream whole, each taken out on purpose: a checker must notice."""

import random

from millrace import messages as m
from services.detokenizer.scribe import Scribe, Transcript
from services.engine.sample import Candidates
from services.engine.sequence import Sequence
from services.gateway.entry import Entry
from services.gateway.ledger import Ledger


class EpochlessLedger(Ledger):
    @staticmethod
    def _current(entry: Entry, said: m.Said) -> bool:
        return True


class EpochlessScribe(Scribe):
    @staticmethod
    def _fenced(transcript: Transcript, run: m.Run) -> bool:
        return False


class IndexlessLedger(Ledger):
    @staticmethod
    def _known(entry: Entry, said: m.Said) -> int:
        return 0


class KinlessLedger(Ledger):
    def _kept_waiting(self, entry: Entry, now: float) -> bool:
        return False


_state = random.Random(0)


def choose_by_global_state(candidates: Candidates, sequences: list[Sequence]) -> list[int]:
    """What a sampler with one generator for all does: its choice depends on what it chose before."""
    return [int(row[_state.randrange(4)]) for row in candidates.ids]
