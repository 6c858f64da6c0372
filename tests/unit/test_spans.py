"""Spans as OTLP has them, and the file they are kept in."""

import base64
import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from millrace import tracefile
from millrace.otel import Otel, SpanExport
from millrace.spans import Event, Kind, Link, Process, Resource, Span, otlp
from millrace.tracefile import TraceFile

RESOURCE = Resource.of({"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "a=b%20c, junk ,d=e"})


def span(name: str = "chat") -> Span:
    return Span(
        Process("engine", "engine_1"),
        "0af7651916cd43dd8448eb211c80319c",
        name,
        1_700_000_000.25,
        1_700_000_000.5,
        "b7ad6b7169203331",
        "00f067aa0ba902b7",
        Kind.CLIENT,
        {"text": "a\nb", "int": -(2**62), "float": 0.1, "bool": True, "list": ["x", "y"]},
        [Event("first token", 1_700_000_000.375, {"tokens": 1})],
        [Link("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b8", {"why": "died"})],
        "it failed",
        "vendor=1",
    )


def as_protobuf(line: bytes) -> TracesData:
    """OTLP's JSON is protobuf's own, but for the ids, which are in hex."""

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            ids = ("traceId", "spanId", "parentSpanId")
            return {
                k: base64.b64encode(bytes.fromhex(v)).decode() if k in ids else walk(v)
                for k, v in node.items()
            }
        return [walk(each) for each in node] if isinstance(node, list) else node

    made = TracesData()
    json_format.ParseDict(walk(json.loads(line)), made)
    return made


def test_json_and_the_sdk_say_the_same() -> None:
    """A line of the file is, field for field, what the SDK's exporter sends."""
    ours = as_protobuf(otlp([span()], RESOURCE))
    theirs = encode_spans([SpanExport(Otel(RESOURCE, 1.0)).sdk(span())])
    (mine,), (other,) = ours.resource_spans, theirs.resource_spans
    made, sent = mine.scope_spans[0].spans[0], other.scope_spans[0].spans[0]
    sent.flags = made.flags  # the SDK tells of sampling and remoteness there
    for link in sent.links:
        link.flags = 0

    assert made == sent
    assert {a.key: a.value.string_value for a in mine.resource.attributes} == {
        a.key: a.value.string_value for a in other.resource.attributes
    }
    assert ("mine", "b c", "e") == tuple(RESOURCE.given[key] for key in ("service.name", "a", "d"))


def test_the_file_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    """It keeps the newest traces in twice its limit; what a kill cut off spoils one line alone."""
    path = tmp_path / tracefile.FOLDER / "gateway.jsonl"
    file = TraceFile(path, RESOURCE, limit=5000)
    for n in range(50):
        file.write([[span(f"n{n}")]])
    size = sum(each.stat().st_size for each in path.parent.iterdir())
    with path.open("ab") as out:
        out.write(b'{"resourceSpans":[{"resou')
    TraceFile(path, RESOURCE, limit=50_000).write([[span("after")]])
    names = [
        line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] for line in tracefile.read(tmp_path)
    ]

    assert size <= 10_000
    assert {"n49", "after"} <= set(names) and "n0" not in names
    assert 0o600 == path.stat().st_mode & 0o777
