"""The service as one sees it live: who is there with how much in hand, and each request as it passes.

Pure and bounded: what happens is written down in a few lines a request, never one a token, whether anybody
looks or not. A reader takes the picture once, and from then on what has happened since.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from millrace import messages as m

RIDES = 50
"""Requests that are shown, the latest."""

HAPPENINGS = 2000
"""A reader that falls further behind takes the picture again."""

SECONDS = 120
"""Of the small plots."""


class Passed(NamedTuple):
    """A hop that is over, kept as it came: it is told only to those who look."""

    process: str
    role: str
    hop: m.Hop

    def told(self) -> dict[str, Any]:
        process, role, hop = self
        return {
            "name": hop.name,
            "role": role,
            "process": process,
            "began": hop.began,
            "ms": round((hop.ended - hop.began) * 1e3, 3),
            "epoch": hop.epoch,
            "notes": hop.notes,
        }


@dataclass(slots=True)
class Ride:
    """One request. `request` is the internal name, whose last 32 digits are in the answer's id."""

    request: str
    trace: str
    model: str
    began: float
    engine: str = ""  # who has it now
    attempts: int = 0
    lost: list[dict[str, Any]] = field(default_factory=list)  # engines it was taken from, and why
    hops: list[Passed] = field(default_factory=list)
    ended: float = 0.0  # 0: it goes on
    finish: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    first_ms: float | None = None


@dataclass(slots=True)
class Sample:
    """One second."""

    at: float
    tokens_per_s: float
    waiting: int
    running: int


class View:
    def __init__(self) -> None:
        self.seq = 0  # of the last happening
        self.rides: OrderedDict[str, Ride] = OrderedDict()
        self.samples: deque[Sample] = deque(maxlen=SECONDS)
        self._happened: deque[tuple[str, str, float, dict[str, Any] | Passed]] = deque(maxlen=HAPPENINGS)
        self._generated = 0

    # -- what happens; times are unix seconds

    def opened(self, request: str, trace: str, model: str, at: float) -> None:
        self.rides[request] = Ride(request, trace, model, at)
        if len(self.rides) > RIDES:
            self.rides.popitem(last=False)
        self._write("opened", request, at, {"trace": trace, "model": model})

    def hops(self, process: str, role: str, request: str, hops: Iterable[m.Hop]) -> None:
        for hop in hops:
            passed = Passed(process, role, hop)
            if ride := self.rides.get(request):
                ride.hops.append(passed)
            self._write("hop", request, hop.ended, passed)

    def granted(self, request: str, engine: str, epoch: int, resumed: int, at: float) -> None:
        if ride := self.rides.get(request):
            ride.engine, ride.attempts = engine, ride.attempts + 1
        self._write("granted", request, at, {"engine": engine, "epoch": epoch, "resumed_tokens": resumed})

    def lost(self, request: str, engine: str, reason: str, at: float) -> None:
        if ride := self.rides.get(request):
            ride.engine = ""
            ride.lost.append({"engine": engine, "reason": reason, "at": at})
        self._write("lost", request, at, {"engine": engine, "reason": reason})

    def ended(
        self, request: str, finish: str, prompt: int, tokens: int, first_ms: float | None, at: float
    ) -> None:
        if ride := self.rides.get(request):
            ride.ended, ride.finish, ride.prompt_tokens, ride.tokens = at, finish, prompt, tokens
            ride.first_ms = first_ms
        self._write("ended", request, at, {"finish": finish, "tokens": tokens, "first_ms": first_ms})

    def sample(self, generated: int, waiting: int, running: int, at: float) -> None:
        """Once a second. `generated`: tokens of the whole service so far."""
        seconds = at - self.samples[-1].at if self.samples else 1.0
        rate = max(generated - self._generated, 0) / max(seconds, 0.1) if self.samples else 0.0
        self._generated = generated
        self.samples.append(Sample(at, round(rate, 1), waiting, running))

    def _write(self, kind: str, request: str, at: float, more: dict[str, Any] | Passed) -> None:
        self.seq += 1
        self._happened.append((kind, request, at, more))

    # -- what is seen

    def since(self, seq: int) -> list[dict[str, Any]] | None:
        """What happened after that; None, if it is too long ago to tell."""
        new = self.seq - seq
        if new <= 0:
            return []
        if new > len(self._happened):
            return None
        return [self._told(seq) for seq in range(seq + 1, self.seq + 1)]

    def _told(self, seq: int) -> dict[str, Any]:
        kind, request, at, more = self._happened[seq - self.seq - 1]
        said = more.told() if isinstance(more, Passed) else more
        return {"seq": seq, "kind": kind, "request": request, "at": at, **said}

    def picture(self, heres: Iterable[m.Here], *, at: float, whole: bool) -> dict[str, Any]:
        """`whole`: with the latest requests and the seconds gone by."""
        processes = [
            {
                "role": here.role,
                "id": here.id,
                "pid": here.pid,
                "state": here.state,
                "load": here.load,
                "room": here.room,
                "model": here.model,
                "pressure": here.pressure,
                "cpu_s": here.gauges.get("cpu_s", 0.0),
                "rss": here.gauges.get("rss", 0.0),
                "cache_used": here.gauges.get("cache_used"),
            }
            for here in sorted(heres, key=lambda here: (here.role, here.id))
        ]
        picture: dict[str, Any] = {"at": at, "seq": self.seq, "processes": processes}
        last = self.samples[-1] if self.samples else Sample(at, 0.0, 0, 0)
        picture |= {"tokens_per_s": last.tokens_per_s, "waiting": last.waiting, "running": last.running}
        if whole:
            picture["requests"] = [
                asdict(replace(ride, hops=[])) | {"hops": [passed.told() for passed in ride.hops]}
                for ride in self.rides.values()
            ]
            picture["seconds"] = [asdict(sample) for sample in self.samples]
        return picture
