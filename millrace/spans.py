"""Spans in a form that costs little to make, and as OTLP has them in JSON.

The gateway makes a request's spans once, at its end, from the times it was told. Attributes are named as
OpenTelemetry's semantic conventions have them; its own package calls the GenAI ones moved, so they are here.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from urllib.parse import unquote

import msgspec

from millrace import __version__

Value = str | int | float | bool | list[str]

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
TEMPERATURE = "gen_ai.request.temperature"
TOP_P = "gen_ai.request.top_p"
TOP_K = "gen_ai.request.top_k"
SEED = "gen_ai.request.seed"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
ERROR_TYPE = "error.type"
SYSTEM = "messaging.system"
DESTINATION = "messaging.destination.name"
# Millrace's own
REQUEST = "millrace.request"
REQUEST_ID = "millrace.request_id"  # as the client has it, in x-request-id
TENANT = "millrace.tenant"
REASON = "millrace.reason"
ENGINE = "millrace.engine"
EPOCH = "millrace.epoch"
ROLE = "millrace.role"

SCOPE = "millrace"


def new_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def new_trace() -> str:
    return f"{random.getrandbits(128) or 1:032x}"


class Kind(IntEnum):
    """As OTLP numbers them."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


# Structs: a request has a dozen spans, and a dataclass takes three times as long to make.


class Process(msgspec.Struct, frozen=True):
    """Whose span it is."""

    role: str
    id: str


class Event(msgspec.Struct, frozen=True):
    name: str
    at: float
    attributes: Mapping[str, Value] = {}


class Link(msgspec.Struct, frozen=True):
    trace: str
    span: str
    attributes: Mapping[str, Value] = {}


class Span(msgspec.Struct):
    """Times are unix seconds."""

    process: Process
    trace: str
    name: str
    began: float
    ended: float
    parent: str = ""
    id: str = msgspec.field(default_factory=new_id)
    kind: Kind = Kind.INTERNAL
    attributes: dict[str, Value] = {}
    events: list[Event] = []
    links: list[Link] = []
    error: str | None = None  # "": it failed, and there is no more to say
    tracestate: str = ""


def nanoseconds(at: float) -> int:
    return int(at * 1e9)


@dataclass(frozen=True)
class Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of the service, and what each process adds."""

    given: Mapping[str, str] = field(default_factory=dict)
    openings: dict[Process, bytes] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Resource":
        given = {}
        for pair in env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
            key, equals, value = pair.partition("=")
            if equals and key.strip():
                given[unquote(key.strip())] = unquote(value.strip())
        if name := env.get("OTEL_SERVICE_NAME", ""):
            given["service.name"] = name
        return cls(given)

    def attributes(self, process: Process) -> dict[str, str]:
        return {
            "service.name": f"millrace-{process.role}",
            "service.version": __version__,
            **self.given,
            "service.instance.id": process.id,
            ROLE: process.role,
        }


# -- OTLP's JSON: ids in hex, 64-bit numbers as text, enumerations as numbers
#
# Written out piece by piece, as it is made for every request: dictionaries would cost five times as much.

_json = msgspec.json.encode


def otlp(spans: Iterable[Span], resource: Resource) -> bytes:
    """A `TracesData`, of which a file has one a line."""
    by_process: dict[Process, list[bytes]] = {}
    for span in spans:
        by_process.setdefault(span.process, []).append(_span(span))
    parts = [
        b"".join((_opening(process, resource), b",".join(own), b"]}]}"))
        for process, own in by_process.items()
    ]
    return b'{"resourceSpans":[%b]}' % b",".join(parts)


def _opening(process: Process, resource: Resource) -> bytes:
    """What is before the spans of a process, always the same."""
    known = resource.openings
    if process not in known:
        if len(known) >= 1000:  # processes come and go
            known.clear()
        scope = _json({"name": SCOPE, "version": __version__})
        of = _attributes(resource.attributes(process))
        known[process] = b'{"resource":{"attributes":%b},"scopeSpans":[{"scope":%b,"spans":[' % (of, scope)
    return known[process]


def _span(span: Span) -> bytes:
    began, ended = nanoseconds(span.began), nanoseconds(max(span.began, span.ended))
    parts = [
        b'{"traceId":"%b","spanId":"%b","name":%b,"kind":%d,"startTimeUnixNano":"%d","endTimeUnixNano":"%d"'
        % (span.trace.encode(), span.id.encode(), _json(span.name), span.kind, began, ended),
        b',"attributes":',
        _attributes(span.attributes),
    ]
    if span.parent:
        parts.append(b',"parentSpanId":"%b"' % span.parent.encode())
    if span.tracestate:
        parts.append(b',"traceState":%b' % _json(span.tracestate))
    if span.events:
        events = (
            b'{"name":%b,"timeUnixNano":"%d","attributes":%b}'
            % (_json(event.name), nanoseconds(event.at), _attributes(event.attributes))
            for event in span.events
        )
        parts.append(b',"events":[%b]' % b",".join(events))
    if span.links:
        links = (
            b'{"traceId":"%b","spanId":"%b","attributes":%b}'
            % (link.trace.encode(), link.span.encode(), _attributes(link.attributes))
            for link in span.links
        )
        parts.append(b',"links":[%b]' % b",".join(links))
    if span.error is not None:
        parts.append(b',"status":{"code":2,"message":%b}' % _json(span.error))
    parts.append(b"}")
    return b"".join(parts)


def _attributes(given: Mapping[str, Value]) -> bytes:
    if not given:
        return b"[]"
    pairs = [b'{"key":%b,"value":%b}' % (_json(key), _value(value)) for key, value in given.items()]
    return b"[%b]" % b",".join(pairs)


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return b'{"stringValue":%b}' % _json(value)
    if isinstance(value, bool):
        return b'{"boolValue":%b}' % _json(value)
    if isinstance(value, int):
        return b'{"intValue":"%d"}' % value
    if isinstance(value, float):
        return b'{"doubleValue":%b}' % _json(value)
    return b'{"arrayValue":{"values":[%b]}}' % b",".join(_value(each) for each in value)
