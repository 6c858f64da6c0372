"""A world's job queue: it redelivers as JetStream does, and any delivery's subject settles the job."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from millrace import messages as m
from millrace.subjects import ACK_WAIT_S
from tests.kit.network import Network


@dataclass
class Stored:
    job: m.Job
    deliveries: int = 0
    until: float = 0.0  # redelivered then; 0: not delivered


class Queue:
    def __init__(self, net: Network):
        self.stored: dict[int, Stored] = {}
        self.deliveries: Counter[str] = Counter()  # of each request
        self._net = net
        self._seq = 0

    def store(self, job: m.Job) -> int:
        self._seq += 1
        self.stored[self._seq] = Stored(job)
        return self._seq

    def pulled(self, wanted: Callable[[], bool]) -> Iterator[tuple[m.Job, str, int]]:
        """Jobs, each with its lease and the count of its deliveries, as long as there are some and more are
        wanted."""
        for seq, stored in list(self.stored.items()):
            if not wanted():
                return
            if not stored.until:
                stored.deliveries += 1
                self.deliveries[stored.job.request] += 1
                stored.until = self._net.now + ACK_WAIT_S
                if self._net.loses():
                    continue  # swallowed by a pull that nobody reads any more
                yield stored.job, f"{seq}.{stored.deliveries}", stored.deliveries

    def redeliver(self) -> None:
        if self._net.nats_up:
            for stored in self.stored.values():
                if stored.until and stored.until <= self._net.now:
                    stored.until = 0.0

    def settle(self, lease: str, verb: str) -> None:
        seq = int(lease.partition(".")[0])
        stored = self.stored.get(seq)
        if stored is None:
            return
        if verb in ("+ACK", "+TERM"):
            del self.stored[seq]
        elif verb == "-NAK":
            stored.until = 0.0
        elif stored.until:
            stored.until = self._net.now + ACK_WAIT_S
