"""A request's way in time: what the gateway saw and what each hop told, made into one trace at the end.

Pure: times come in on the monotonic clock, and go out as unix seconds. While a request runs, nothing is made
but the record of an attempt; the spans are made when it is over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from millrace import messages as m
from millrace import spans
from millrace.errors import MEANINGS, Code
from millrace.spans import Kind, Link, Process, Span
from millrace.subjects import JOBS, Role
from millrace.telemetry import is_sampled, span_of, trace_of
from services.gateway.owner.entry import Entry
from services.gateway.visit import Visit

LINGER_S = 0.25
"""The last hops of an engine come by another way than the last token, and may come after it."""

MOST_HOPS = 64
MOST_ATTEMPTS = 32
CONTENT = 64 << 10
"""Characters of a prompt or an answer that a span takes, where they are recorded at all."""


@dataclass(slots=True)
class Attempt:
    """One engine's try at a request."""

    epoch: int
    engine: str
    granted_at: float
    start: int  # tokens that were committed before
    ended_at: float = 0.0  # 0: it has it still, or had it to the end
    end: int = 0
    spoken_at: float = 0.0  # when its last token was committed
    reason: str = ""  # why it was taken from it
    strange: bool = False  # the engine is of another kind than the one before


@dataclass(slots=True)
class Journey:
    entry: Entry
    asked_at: float
    admitted_at: float = 0.0
    ended_at: float = 0.0
    tries: int = 0  # at a tokenizer
    attempts: list[Attempt] = field(default_factory=list)
    hops: list[tuple[Process, m.Hop]] = field(default_factory=list)

    def admitted(self, admitted: m.Admitted, now: float) -> None:
        self.admitted_at = self.admitted_at or now
        self.told(Process(Role.TOKENIZER, admitted.tokenizer), admitted.hops)

    def granted(self, granted: m.Granted, engine: str, now: float) -> None:
        if len(self.attempts) < MOST_ATTEMPTS:
            self.attempts.append(
                Attempt(granted.epoch, engine, now, len(granted.committed), strange=granted.strange)
            )

    def lost(self, reason: str, now: float) -> None:
        if self.attempts and not self.attempts[-1].ended_at:
            last = self.attempts[-1]
            last.ended_at, last.reason, last.end = now, reason, len(self.entry.committed)
            last.spoken_at = self.entry.spoken_at if last.end > last.start else 0.0

    def told(self, process: Process, hops: list[m.Hop]) -> None:
        room = MOST_HOPS - len(self.hops)
        self.hops += [(process, hop) for hop in hops[:room]]

    def hop(self, name: str, epoch: int | None = None) -> m.Hop | None:
        """The last one of that name, of one attempt or of any."""
        for _, hop in reversed(self.hops):
            if hop.name == name and epoch in (None, hop.epoch):
                return hop
        return None

    @property
    def operation(self) -> str:
        if self.entry.vector:
            return "embeddings"
        return "chat" if isinstance(self.entry.prompt.input, m.Chat) else "text_completion"

    def queued_s(self) -> float | None:
        """From the queue to the first engine."""
        publish, claim = self.hop("publish"), self._first("claim")
        return max(0.0, claim.began - publish.ended) if publish and claim else None

    def prefill_s(self) -> float | None:
        hop = self._first("prefill")
        return hop.ended - hop.began if hop else None

    def decode_s(self) -> float | None:
        """From the first token to the last, fail-overs included."""
        entry = self.entry
        return entry.spoken_at - entry.first_at if entry.finish and not entry.vector else None

    def _first(self, name: str) -> m.Hop | None:
        return next((hop for _, hop in self.hops if hop.name == name), None)


@dataclass(slots=True)
class Stay:
    """A visit and the generations it asked for."""

    visit: Visit | None
    journeys: list[Journey] = field(default_factory=list)
    told: bool = False  # its end was said
    over_at: float = 0.0

    @property
    def over(self) -> bool:
        left = self.visit is None or self.visit.left_at > 0
        return left and all(journey.ended_at for journey in self.journeys)


class Journeys:
    """All that is under way, and what ended a moment ago."""

    def __init__(self, process: Process, *, content: bool = False):
        self.process = process
        self._content = content
        self._stays: dict[str, Stay] = {}  # by the visit's traceparent, which every ask made on it carries
        self._open: dict[str, tuple[Journey, Stay]] = {}  # by request
        self._lingering: list[Stay] = []

    def arrived(self, visit: Visit) -> None:
        self._stays[visit.traceparent] = Stay(visit)

    def opened(self, entry: Entry, asked_on: str, now: float) -> Journey:
        stay = self._stays.get(asked_on) or Stay(None)
        journey = Journey(entry, now)
        stay.journeys.append(journey)
        self._open[entry.request] = journey, stay
        return journey

    def of(self, request: str) -> Journey | None:
        found = self._open.get(request)
        return found[0] if found else None

    def ended(self, request: str, now: float) -> Stay | None:
        """The visit's stay, if it is over with this."""
        journey, stay = self._open[request]
        journey.ended_at = now
        return self._over(stay, now)

    def left(self, visit: Visit, now: float) -> Stay | None:
        stay = self._stays.pop(visit.traceparent)
        return self._over(stay, now)

    def _over(self, stay: Stay, now: float) -> Stay | None:
        if not stay.over or stay.told:
            return None
        stay.told, stay.over_at = True, now
        self._lingering.append(stay)
        return stay

    def due(self, now: float) -> list[Stay]:
        """Those that have been over for long enough; each once."""
        ready = [stay for stay in self._lingering if now - stay.over_at >= LINGER_S]
        if ready:
            self._lingering = [stay for stay in self._lingering if now - stay.over_at < LINGER_S]
            for stay in ready:
                for journey in stay.journeys:
                    self._open.pop(journey.entry.request, None)
        return ready

    # -- spans

    def step(self, process: Process, hop: m.Hop) -> Span:
        """An engine's step: a trace of its own, with a link to every traced request in it."""
        links = [Link(trace_of(link), span_of(link)) for link in hop.links]
        return Span(
            process,
            spans.new_trace(),
            hop.name,
            hop.began,
            hop.ended,
            attributes=dict(hop.notes),
            links=links,
        )

    def trace(self, stay: Stay, offset: float) -> list[Span]:
        """`offset`: unix seconds less the monotonic clock's. Nothing, if it is not to be recorded."""
        visit = stay.visit
        made: list[Span] = []
        if visit is not None:
            if not is_sampled(visit.traceparent) or (visit.method in ("GET", "HEAD") and not stay.journeys):
                return []
            made += self._visited(visit, offset)
        for journey in stay.journeys:
            if is_sampled(journey.entry.traceparent):
                made += self._travelled(journey, visit, offset)
        return made

    def _visited(self, visit: Visit, offset: float) -> Iterator[Span]:
        trace, status = trace_of(visit.traceparent), visit.status or MEANINGS[Code.CANCELLED].status
        attributes: dict[str, spans.Value] = {
            spans.METHOD: visit.method,
            spans.STATUS: status,
            spans.REQUEST_ID: visit.request_id.decode(),
        }
        if visit.route:
            attributes[spans.ROUTE] = visit.route
        if visit.failure:
            attributes[spans.ERROR_TYPE] = visit.failure.code
        yield Span(
            self.process,
            trace,
            f"{visit.method} {visit.route}".strip(),
            visit.began + offset,
            visit.left_at + offset,
            visit.parent,
            span_of(visit.traceparent),
            Kind.SERVER,
            attributes,
            error="" if status >= 500 else None,
            tracestate=visit.tracestate,
        )
        if visit.first_at:
            yield Span(
                self.process,
                trace,
                "stream",
                visit.first_at + offset,
                visit.left_at + offset,
                span_of(visit.traceparent),
                attributes={
                    "millrace.bytes": visit.sent,
                    "millrace.stalls": visit.stalls,
                    "millrace.stalled_ms": round(visit.stalled_s * 1e3, 3),
                },
            )

    def _travelled(self, journey: Journey, visit: Visit | None, offset: float) -> Iterator[Span]:
        entry = journey.entry
        trace, chat = trace_of(entry.traceparent), span_of(entry.traceparent)
        ended = journey.ended_at + offset
        yield Span(
            self.process,
            trace,
            f"{journey.operation} {entry.model}",
            journey.asked_at + offset,
            ended,
            span_of(visit.traceparent) if visit else "",
            chat,
            attributes=self._said(journey),
            error=entry.failure.message if entry.failure else None,
        )
        admitted = journey.admitted_at + offset if journey.admitted_at else ended
        admit = Span(
            self.process,
            trace,
            "admit",
            journey.asked_at + offset,
            admitted,
            chat,
            kind=Kind.CLIENT,
            attributes={"millrace.tries": journey.tries},
            error=None if journey.admitted_at else journey.entry.end,
        )
        yield admit
        if tokenize := journey.hop("tokenize"):
            asked = journey.asked_at + offset
            yield self._waited("tokenizer wait", trace, admit.id, min(asked, tokenize.began), tokenize.began)
        for process, hop in journey.hops:
            if not hop.epoch:
                yield _hop(process, hop, trace, admit.id)
        publish = journey.hop("publish")
        since = publish.ended if publish else admitted
        before: tuple[Attempt, Span] | None = None
        for number, attempt in enumerate(journey.attempts, 1):
            claim = journey.hop("claim", attempt.epoch)
            pulled = claim.began if claim else attempt.granted_at + offset
            yield self._waited("broker wait", trace, chat, min(since, pulled), pulled)
            since = attempt.ended_at + offset if attempt.ended_at else ended
            span = self._attempted(attempt, number, trace, chat, pulled, since, journey)
            if before is not None:
                lost, earlier = before
                span.links.append(Link(trace, earlier.id, {spans.REASON: lost.reason}))
            yield span
            yield from self._within(journey, attempt, span, offset)
            before = attempt, span
        last = journey.attempts[-1] if journey.attempts else None
        if journey.admitted_at and (last is None or last.ended_at) and ended > since:
            yield self._waited("broker wait", trace, chat, since, ended)

    def _said(self, journey: Journey) -> dict[str, spans.Value]:
        entry, sampling = journey.entry, journey.entry.prompt.sampling
        said: dict[str, spans.Value] = {
            spans.OPERATION: journey.operation,
            spans.PROVIDER: "millrace",
            spans.REQUEST_MODEL: entry.model,
            spans.RESPONSE_MODEL: entry.model,
            spans.RESPONSE_ID: m.digits_of(entry.request),
            spans.TEMPERATURE: sampling.temperature,
            spans.TOP_P: sampling.top_p,
            spans.SEED: sampling.seed,
            spans.INPUT_TOKENS: entry.prompt_tokens,
            spans.OUTPUT_TOKENS: entry.said,
            spans.FINISH_REASONS: [journey.entry.end],
            spans.REQUEST: entry.request,
            "millrace.attempts": len(journey.attempts),
        }
        if sampling.top_k:
            said[spans.TOP_K] = sampling.top_k
        if entry.prompt.max_tokens is not None:
            said[spans.MAX_TOKENS] = entry.prompt.max_tokens
        if entry.prompt.tenant:
            said[spans.TENANT] = entry.prompt.tenant
        if entry.failure:
            said[spans.ERROR_TYPE] = entry.failure.code
        if entry.first_at:
            said["millrace.time_to_first_token_ms"] = round((entry.first_at - journey.asked_at) * 1e3, 3)
        if self._content:
            said[spans.INPUT_MESSAGES] = _content(entry.prompt.input)
            said[spans.OUTPUT_MESSAGES] = "".join(entry.heard or ())[:CONTENT]
        return said

    def _waited(self, name: str, trace: str, parent: str, began: float, ended: float) -> Span:
        attributes: dict[str, spans.Value] = {spans.SYSTEM: "nats"}
        if name == "broker wait":
            attributes[spans.DESTINATION] = JOBS.name
        return Span(
            self.process, trace, name, began, ended, parent, kind=Kind.CONSUMER, attributes=attributes
        )

    def _attempted(
        self,
        attempt: Attempt,
        number: int,
        trace: str,
        chat: str,
        began: float,
        ended: float,
        journey: Journey,
    ) -> Span:
        end = attempt.end if attempt.ended_at else journey.entry.said
        attributes: dict[str, spans.Value] = {
            spans.ENGINE: attempt.engine,
            spans.EPOCH: attempt.epoch,
            "millrace.resumed_tokens": attempt.start,
            "millrace.tokens": end - attempt.start,
        }
        if attempt.strange:
            attributes["millrace.another_kind"] = True
        if attempt.reason:
            attributes[spans.REASON] = attempt.reason
        return Span(
            self.process,
            trace,
            f"attempt {number}",
            began,
            ended,
            chat,
            attributes=attributes,
            error=f"the engine was given up: {attempt.reason}" if attempt.reason else None,
        )

    def _within(self, journey: Journey, attempt: Attempt, within: Span, offset: float) -> Iterator[Span]:
        trace = within.trace
        for process, hop in journey.hops:
            if hop.epoch == attempt.epoch:
                yield _hop(process, hop, trace, within.id)
        if not attempt.reason:
            return
        prefill = journey.hop("prefill", attempt.epoch)
        quiet = prefill.ended if prefill else within.began
        if attempt.spoken_at and journey.hop("decode", attempt.epoch) is None:
            # It ended without telling. Its owner knows when its tokens came.
            quiet = max(quiet, attempt.spoken_at + offset)
            began = prefill.ended if prefill else attempt.granted_at + offset
            yield Span(
                self.process,
                trace,
                "decode",
                began,
                quiet,
                within.id,
                attributes={"tokens": attempt.end - attempt.start, "millrace.seen_by": Role.GATEWAY.value},
            )
        yield Span(
            self.process,
            trace,
            "silence",
            min(quiet, within.ended),
            within.ended,
            within.id,
            attributes={spans.REASON: attempt.reason},
        )


_KINDS = {"publish": Kind.PRODUCER, "claim": Kind.CLIENT}


def _hop(process: Process, hop: m.Hop, trace: str, parent: str) -> Span:
    attributes: dict[str, spans.Value] = dict(hop.notes)
    if hop.epoch:
        attributes[spans.EPOCH] = hop.epoch
    if hop.name == "publish":
        attributes |= {spans.SYSTEM: "nats", spans.DESTINATION: JOBS.name}
    events = [
        spans.Event(mark.name, mark.at, {"tokens": mark.tokens} if mark.tokens else {}) for mark in hop.marks
    ]
    return Span(
        process,
        trace,
        hop.name,
        hop.began,
        hop.ended,
        parent,
        kind=_KINDS.get(hop.name, Kind.INTERNAL),
        attributes=attributes,
        events=events,
    )


def _content(given: m.Chat | m.Text | m.Ids) -> str:
    match given:
        case m.Chat():
            text = given.messages.decode()
        case m.Text():
            text = given.text
        case m.Ids():
            text = str(given.ids)
    return text[:CONTENT]
