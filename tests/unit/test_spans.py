"""Spans as OTLP has them, and the file they are kept in."""

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
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
    there = names(tmp_path)

    assert size <= 10_000
    assert {"n49", "after"} <= set(there) and "n0" not in there
    assert 0o600 == path.stat().st_mode & 0o777


def names(folder: Path) -> list[str]:
    """Of the first span of each trace there."""
    return [line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] for line in tracefile.read(folder)]


def test_a_full_disk_spoils_one_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that it cut, and not the one that comes when there is room again."""
    file = TraceFile(tmp_path / tracefile.FOLDER / "gateway.jsonl", RESOURCE)
    write = os.write
    monkeypatch.setattr("os.write", lambda fd, line: write(fd, line[: len(line) // 2]))
    file.write([[span("cut")]])
    monkeypatch.undo()
    file.write([[span("first")], [span("second")]])

    assert ["first", "second"] == names(tmp_path)


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """The traces that follow are there."""
    file = TraceFile(tmp_path / tracefile.FOLDER / "gateway.jsonl", RESOURCE)
    file.write([[span("before")]])
    shutil.rmtree(tmp_path / tracefile.FOLDER)
    file.write([[span("after")]])

    assert ["after"] == names(tmp_path)


def test_a_file_that_cannot_be_set_aside_keeps_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is opened has another number, and no trace is written there."""
    file = TraceFile(tmp_path / tracefile.FOLDER / "gateway.jsonl", RESOURCE, limit=100)
    file.write([[span("kept")]])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr("pathlib.Path.replace", _refuse)
        file.write([[span("lost")]])
    strangers = [os.open(tmp_path / f"{n}", os.O_RDWR | os.O_CREAT) for n in range(8)]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr("pathlib.Path.replace", _refuse)
        file.write([[span("lost")]])
    sizes = [os.fstat(fd).st_size for fd in strangers]  # which fails for one that was closed
    file.write([[span("after")]])

    assert [0] * 8 == sizes
    assert {"kept", "after"} == set(names(tmp_path))


def _refuse(*_: object) -> Path:
    raise OSError("no room")
