"""Spans in a form that costs little to make, and as OTLP has them in JSON.

The gateway makes a request's spans once, at its end, from the times it was told. Attributes are named as
OpenTelemetry's semantic conventions have them; its own package calls the GenAI ones moved, so they are here.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from urllib.parse import unquote

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


@dataclass(frozen=True, slots=True)
class Process:
    """Whose span it is."""

    role: str
    id: str


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    at: float
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    trace: str
    span: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Span:
    """Times are unix seconds."""

    process: Process
    trace: str
    name: str
    began: float
    ended: float
    parent: str = ""
    id: str = field(default_factory=new_id)
    kind: Kind = Kind.INTERNAL
    attributes: dict[str, Value] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    error: str | None = None  # "": it failed, and there is no more to say
    tracestate: str = ""


def nanoseconds(at: float) -> int:
    return int(at * 1e9)


@dataclass(frozen=True)
class Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of the service, and what each process adds."""

    given: Mapping[str, str] = field(default_factory=dict)

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


def otlp(spans: Iterable[Span], resource: Resource) -> dict[str, Any]:
    """A `TracesData`, of which a file has one a line."""
    by_process: dict[Process, list[Span]] = {}
    for span in spans:
        by_process.setdefault(span.process, []).append(span)
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource.attributes(process))},
                "scopeSpans": [
                    {
                        "scope": {"name": SCOPE, "version": __version__},
                        "spans": [_span(span) for span in own],
                    }
                ],
            }
            for process, own in by_process.items()
        ]
    }


def _span(span: Span) -> dict[str, Any]:
    made: dict[str, Any] = {
        "traceId": span.trace,
        "spanId": span.id,
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(nanoseconds(span.began)),
        "endTimeUnixNano": str(nanoseconds(max(span.began, span.ended))),
        "attributes": _attributes(span.attributes),
    }
    if span.parent:
        made["parentSpanId"] = span.parent
    if span.tracestate:
        made["traceState"] = span.tracestate
    if span.events:
        made["events"] = [
            {
                "name": event.name,
                "timeUnixNano": str(nanoseconds(event.at)),
                "attributes": _attributes(event.attributes),
            }
            for event in span.events
        ]
    if span.links:
        made["links"] = [
            {"traceId": link.trace, "spanId": link.span, "attributes": _attributes(link.attributes)}
            for link in span.links
        ]
    if span.error is not None:
        made["status"] = {"code": 2, "message": span.error}
    return made


def _attributes(given: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in given.items()]


def _value(value: Value) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": value}
