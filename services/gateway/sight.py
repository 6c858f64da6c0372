"""What the gateway shows of itself: a request's trace and its one log line, made when it has ended."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from millrace import exposed
from millrace import messages as m
from millrace.errors import MEANINGS, Code
from millrace.logs import fields
from millrace.metrics import Family
from millrace.otel import MetricExport, Otel, SpanExport
from millrace.outlet import Outlet
from millrace.settings import Gateway
from millrace.spans import Process, Span
from millrace.subjects import Role
from millrace.telemetry import trace_of
from millrace.tracefile import TraceFile
from millrace.wall import wall
from services.gateway.journey import Journey, Journeys, Stay
from services.gateway.owner.entry import Entry
from services.gateway.owner.tally import Tally
from services.gateway.view import View
from services.gateway.visit import Visit

CLOSE_S = 0.5
"""What a way out may take at the end, whatever is behind it."""

log = logging.getLogger("millrace.request")


class Sight:
    def __init__(self, id: str, given: Gateway, env: Mapping[str, str]):
        otel = Otel.of(env)
        self._otel = otel
        self._content = given.trace_content
        self._tallies: dict[str, Tally] | None = {} if given.metrics else None  # by served model
        self._rejected: Counter[str] = Counter()
        self.view = View()
        self._journeys = Journeys(Process(Role.GATEWAY, id), content=given.trace_content)
        self._outlets: list[Outlet[list[Span]]] = []
        self._metrics_out: Outlet[list[Family]] | None = None
        if otel.metrics:
            self._metrics_out = Outlet("OTLP metrics", MetricExport(otel, self._journeys.process), size=2)
        if given.trace_file and otel.ratio:
            file = TraceFile(Path(given.trace_file), otel.resource)
            self._outlets.append(Outlet("trace file", file.write, size=otel.queue))
        if otel.traces and otel.ratio:
            export = SpanExport(otel)
            self._outlets.append(Outlet("OTLP traces", export, size=otel.queue, pause_s=otel.traces_every_s))

    @property
    def exports_metrics(self) -> bool:
        return self._metrics_out is not None

    @property
    def metrics_every_s(self) -> float:
        return self._otel.metrics_every_s

    def export(self, families: list[Family]) -> None:
        if self._metrics_out:
            self._metrics_out.put(families)

    @property
    def counts(self) -> dict[str, int]:
        return {
            **self._rejected,
            "traces_dropped": sum(outlet.dropped for outlet in self._outlets),
            "traces_failed": sum(outlet.failed for outlet in self._outlets),
        }

    def sampled(self) -> bool:
        return bool(self._outlets) and self._otel.sampled()

    # -- what happens

    def arrived(self, visit: Visit) -> None:
        self._journeys.arrived(visit)

    def opened(self, entry: Entry, asked_on: str, now: float) -> Journey:
        if self._content:
            entry.heard = []
        entry.tally = self._tally(entry.model)
        self.view.opened(entry.request, trace_of(entry.traceparent), entry.model, wall(now))
        return self._journeys.opened(entry, asked_on, now)

    def journey(self, request: str) -> Journey | None:
        return self._journeys.of(request)

    def told(self, hops: m.Hops) -> None:
        process = Process(hops.role, hops.id)
        if not hops.request:
            for hop in hops.hops:
                self._put([self._journeys.step(process, hop)])
        elif journey := self._journeys.of(hops.request):
            journey.told(process, hops.hops)
            self.view.hops(hops.id, hops.role, hops.request, hops.hops)

    def granted(self, granted: m.Granted, engine: str, now: float) -> None:
        if journey := self._journeys.of(granted.request):
            journey.granted(granted, engine, now)
            resumed = len(granted.committed)
            self.view.granted(granted.request, engine, granted.epoch, resumed, wall(now))

    def lost(self, request: str, engine: str, reason: str, now: float) -> None:
        if journey := self._journeys.of(request):
            journey.lost(reason, now)
            self.view.lost(request, engine, reason, wall(now))

    def _tally(self, model: str) -> Tally | None:
        if self._tallies is None:
            return None
        if model not in self._tallies and len(self._tallies) < exposed.MOST_MODELS:
            self._tallies[model] = Tally()
        return self._tallies.get(model)

    def admitted(self, journey: Journey, admitted: m.Admitted, now: float) -> None:
        journey.admitted(admitted, now)
        self.view.hops(admitted.tokenizer, Role.TOKENIZER, admitted.request, admitted.hops)

    @property
    def generated(self) -> int:
        """Tokens so far."""
        return sum(tally.generated for tally in (self._tallies or {}).values())

    def tallies(self, entries: Iterable[Entry]) -> list[m.Tallied]:
        """As this gateway tells them; of the live entries, those that no engine has are waiting."""
        waiting = Counter(entry.model for entry in entries if not entry.engine)
        return [tally.told(model, waiting[model]) for model, tally in (self._tallies or {}).items()]

    def ended(self, entry: Entry, now: float) -> None:
        first_ms = round((entry.first_at - entry.opened_at) * 1e3, 1) if entry.first_at else None
        tokens = entry.said
        if entry.tally is not None:
            seconds = now - entry.opened_at
            entry.tally.ended(entry.end, entry.prompt_tokens, entry.cached_tokens, tokens, seconds)
        self.view.ended(entry.request, entry.end, entry.prompt_tokens, tokens, first_ms, wall(now))
        if stay := self._journeys.ended(entry.request, now):
            _say(stay)

    def left(self, visit: Visit, now: float) -> None:
        if visit.failure:
            self._rejected[f"rejected_{visit.failure.code}"] += 1
        if stay := self._journeys.left(visit, now):
            _say(stay)

    # -- what is made of it

    def tick(self, now: float) -> None:
        offset = wall(0.0)
        for stay in self._journeys.due(now):
            for journey in stay.journeys:
                if (tally := journey.entry.tally) is not None:
                    tally.spent(journey.queued_s(), journey.prefill_s(), journey.decode_s())
            if made := self._journeys.trace(stay, offset):
                self._put(made)

    def _put(self, trace: list[Span]) -> None:
        for outlet in self._outlets:
            outlet.put(trace)

    def close(self) -> None:
        self.tick(float("inf"))
        for outlet in self._outlets:
            outlet.close(CLOSE_S)
        if self._metrics_out:
            self._metrics_out.close(CLOSE_S)


def _say(stay: Stay) -> None:
    """The one line of a request. What only looked at us is said to those who look closely."""
    visit = stay.visit
    if visit is None:
        return
    journeys = stay.journeys
    level = logging.DEBUG if visit.method in ("GET", "HEAD") and not journeys else logging.INFO
    if not log.isEnabledFor(level):
        return
    entries = [journey.entry for journey in journeys]
    firsts = [entry.first_at for entry in entries if entry.first_at]
    failed = visit.failure.code if visit.failure else ""
    ended = max([visit.left_at, *(journey.ended_at for journey in journeys)])
    log.log(
        level,
        "request ended",
        extra=fields(
            request=visit.request_id.decode(),
            trace=trace_of(visit.traceparent),
            jobs=[entry.request for entry in entries],
            tenant=visit.tenant.name,
            method=visit.method,
            route=visit.route,
            model=entries[0].model if entries else "",
            status=visit.status or MEANINGS[Code.CANCELLED].status,
            finish=entries[0].end if entries else failed,
            prompt_tokens=sum(entry.prompt_tokens for entry in entries),
            tokens=sum(entry.said for entry in entries),
            ttft_ms=round((min(firsts) - visit.began) * 1e3, 1) if firsts else None,
            duration_ms=round((ended - visit.began) * 1e3, 1),
            attempts=sum(len(journey.attempts) for journey in journeys),
            bytes=visit.sent,
        ),
    )
