"""Engines and detokenizers, as far as they answer: who is being asked, who is lost, who has come back."""

from dataclasses import dataclass

from millrace import messages as m

LOST_S = 60.0
"""Who is not heard again by then is gone."""

GRACE_S = 1.0
"""After this gateway reconnects, others may still be reconnecting: 'nobody listens' proves nothing yet."""


@dataclass(slots=True)
class Peer:
    probing: bool = False
    missed: int = 0
    steps: int = -1
    stepped_at: float = 0.0
    asked_at: float = 0.0


class Peers:
    def __init__(self, pings: int):
        """`pings`: so many without an answer, and it is lost."""
        self._pings = pings
        self._peers: dict[str, Peer] = {}
        self._lost: dict[str, float] = {}  # and when
        self._grace_until = 0.0

    def __len__(self) -> int:
        return len(self._peers)

    def ask(self, id: str, now: float) -> bool:
        """It is to be pinged. False if it is being asked already."""
        if id not in self._peers:  # whoever comes, those of whom nothing was wanted for long go
            self._peers = {
                other: peer for other, peer in self._peers.items() if now - peer.asked_at < LOST_S
            } | {id: Peer()}
        peer = self._peers[id]
        peer.asked_at = now
        asked, peer.probing = peer.probing, True
        return not asked

    def answered(self, pong: m.Pong, now: float) -> float:
        """When it made a step, as far as we know."""
        peer = self._peers.setdefault(pong.id, Peer())
        peer.probing, peer.missed = False, 0
        if pong.steps != peer.steps:
            peer.steps, peer.stepped_at = pong.steps, now
        return peer.stepped_at

    def unanswered(self, id: str, *, gone: bool, now: float) -> bool:
        """A ping came to nothing; `gone`: nobody listens there. True if it is lost."""
        peer = self._peers.setdefault(id, Peer())
        peer.probing = False
        peer.missed += 1
        if (not gone or self.grace(now)) and peer.missed < self._pings:
            return False
        del self._peers[id]
        self._lost = {other: at for other, at in self._lost.items() if now - at < LOST_S} | {id: now}
        return True

    def back(self, id: str) -> bool:
        """It speaks. True if it was taken to be lost."""
        return self._lost.pop(id, None) is not None

    def reconnected(self, now: float) -> None:
        """Silence until now says nothing of anybody."""
        self._peers.clear()
        self._grace_until = now + GRACE_S

    def grace(self, now: float) -> bool:
        return now < self._grace_until
