"""A trace from the file, drawn: each hop with its milliseconds, indented below what it was a part of."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from millrace import paint, spans
from millrace.messages import digits_of
from millrace.spans import Kind

COLOURS = {
    "gateway": "36",
    "tokenizer": "35",
    "engine": "32",
    "detokenizer": "34",
}
FAILED = "31"
NARROW = 24
"""Columns that a bar needs to say anything."""

WIDE = 110
"""Columns from which on there is room for the names of processes."""

NOTE = 20
"""Columns that are left for what is to say of a hop; more, if there is room."""

PREFIXES = re.compile(r"(?:chatcmpl|cmpl|resp|msg)[-_]")

UNSAFE = re.compile(r"[^\x20-\x7e]")


@dataclass
class Row:
    """A span as it is drawn."""

    name: str
    process: str
    role: str
    trace: str
    id: str
    parent: str
    kind: int
    began: float  # unix ms
    ended: float
    failed: bool
    attributes: dict[str, Any]
    links: list[dict[str, Any]]
    marks: int  # events
    children: list["Row"] = field(default_factory=list)

    @property
    def ms(self) -> float:
        return self.ended - self.began


@dataclass
class Trace:
    rows: list[Row]

    @property
    def top(self) -> Row:
        """The request; of a line without one, whatever began first."""
        servers = [row for row in self.rows if row.kind == Kind.SERVER]
        return min(servers or self.rows, key=lambda row: row.began)

    @property
    def is_step(self) -> bool:
        return self.top.name == "engine.step"

    def called(self, name: str) -> bool:
        """Whether it is the request of this id: the client's, ours, an answer's or the trace's."""
        bare = PREFIXES.sub("", name, count=1)
        for row in self.rows:
            request = str(row.attributes.get(spans.REQUEST, ""))
            own = {row.attributes.get(spans.REQUEST_ID), request, digits_of(request), row.trace}
            if name in own or bare in own:
                return True
        return False


def parsed(data: dict[str, Any]) -> Trace | None:
    """None, if it is not a line of ours."""
    try:
        rows = [
            _row(span, resource)
            for resource in data["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return Trace(rows) if rows else None


def _row(span: dict[str, Any], resource: dict[str, Any]) -> Row:
    of = _values(resource["resource"]["attributes"])
    return Row(
        _shown(span["name"]),
        _shown(str(of.get("service.instance.id", ""))),
        str(of.get(spans.ROLE, "")),
        span["traceId"],
        span["spanId"],
        span.get("parentSpanId", ""),
        int(span["kind"]),
        int(span["startTimeUnixNano"]) / 1e6,
        int(span["endTimeUnixNano"]) / 1e6,
        span.get("status", {}).get("code") == 2,
        _values(span.get("attributes", [])),
        [{**link, "attributes": _values(link.get("attributes", []))} for link in span.get("links", [])],
        len(span.get("events", [])),
    )


def _values(attributes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: _value(each["value"]) for each in attributes}


def _value(value: dict[str, Any]) -> Any:
    ((kind, given),) = value.items()
    if kind == "arrayValue":
        return [_value(each) for each in given.get("values", [])]
    return int(given) if kind == "intValue" else given


def _shown(text: str) -> str:
    return UNSAFE.sub("?", text)


# -- which


def last(traces: Iterable[Trace]) -> Trace | None:
    return max((t for t in traces if not t.is_step), key=lambda t: t.top.began, default=None)


def slowest(traces: Iterable[Trace]) -> Trace | None:
    return max((t for t in traces if not t.is_step), key=lambda t: t.top.ms, default=None)


def named(traces: Iterable[Trace], name: str) -> Trace | None:
    return last(trace for trace in traces if trace.called(name))


# -- the picture


def drawn(trace: Trace, others: Sequence[Trace], *, columns: int, colour: bool) -> list[str]:
    """`others`: among them the steps that engines made for it."""
    painted = paint.brush(colour)
    top = trace.top
    origin, whole = top.began, max(max(row.ended for row in trace.rows) - top.began, 0.001)
    rows = list(_ordered(trace))
    names = max(len("  " * depth + row.name) for depth, row in rows)
    processes = max(len(row.process) for _, row in rows) + 2 if columns >= WIDE else 0
    fixed = names + processes + 24
    bar = max(min(columns - fixed - NOTE, 60), NARROW)
    left = max(columns - fixed - bar - 2, NOTE)
    scale = f"0{f'{whole:.0f} ms':>{bar - 1}}"
    title = f"{'':<{names}}  {'process'[:processes]:<{processes}}{'at ms':>9} {'took ms':>9}  {scale}"
    lines = [*_head(trace), "", painted(title, "2")]
    for depth, row in rows:
        # A clock of another machine may put it before the request began.
        start = max(0, min(int((row.began - origin) / whole * bar), bar - 1))
        length = max(1, min(round(row.ms / whole * bar), bar - start))
        code = FAILED if row.failed else COLOURS.get(row.role, "")
        line = f"{'  ' * depth + row.name:<{names}}  {row.process[:processes]:<{processes}}"
        line += f"{row.began - origin:>9.1f} {row.ms:>9.1f}  {' ' * start}{painted('█' * length, code)}"
        lines.append(f"{line}{' ' * (bar - start - length)}  {_note(row, trace)[:left]}".rstrip())
    steps = [s.top for s in others if s.is_step and any(_about(link, trace) for link in s.top.links)]
    if steps:
        took = sum(step.ms for step in steps) / len(steps)
        batch = sum(int(step.attributes.get("batch", 0)) for step in steps) / len(steps)
        lines += [
            "",
            f"engine steps sampled: {len(steps)}, on average {took:.1f} ms with a batch of {batch:.1f}",
        ]
    return lines


def _head(trace: Trace) -> list[str]:
    top = trace.top
    chats = [row for row in trace.rows if spans.FINISH_REASONS in row.attributes]
    lines = [f"{top.name}  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(top.began / 1e3))}"]
    if spans.STATUS in top.attributes:
        lines[0] += f"  status {top.attributes[spans.STATUS]}"
    for chat in chats:
        of = chat.attributes
        first = of.get("millrace.time_to_first_token_ms")
        parts = [
            _shown(str(of.get(spans.REQUEST_MODEL, ""))),
            f"{of.get(spans.INPUT_TOKENS, 0)} + {of.get(spans.OUTPUT_TOKENS, 0)} tokens",
            f"finish {', '.join(of[spans.FINISH_REASONS])}",
            f"first token after {first:.1f} ms" if first is not None else "no token",
            f"{of.get('millrace.attempts', 0)} attempt{'s' * (of.get('millrace.attempts', 0) != 1)}",
        ]
        lines.append("  ".join(parts))
    lines.append(f"request {_shown(str(top.attributes.get(spans.REQUEST_ID, '')))}  trace {top.trace}")
    return lines


def _ordered(trace: Trace) -> Iterator[tuple[int, Row]]:
    """Each span behind what it is a part of, in the order of time."""
    known = {row.id: row for row in trace.rows}
    roots: list[Row] = []
    for row in trace.rows:
        (known[row.parent].children if row.parent in known else roots).append(row)

    def below(rows: list[Row], depth: int) -> Iterator[tuple[int, Row]]:
        for row in sorted(rows, key=lambda row: (row.began, row.ended)):
            yield depth, row
            yield from below(row.children, depth + 1)

    yield from below(roots, 0)


def _note(row: Row, trace: Trace) -> str:
    of = row.attributes
    match row.name:
        case "tokenize" | "detokenize" | "decode":
            return f"{of.get('tokens', 0)} tokens"
        case "prefill":
            resumed = of.get("resumed_tokens", 0)
            prompt = f"{of.get('prompt_tokens', 0)} tokens" + (f" + {resumed} said before" if resumed else "")
            cached = of.get("cached_tokens", 0)
            known = f", {cached} from the cache" if cached else ""
            return f"{prompt}{known}, {row.marks} chunk{'s' * (row.marks != 1)}"
        case "silence":
            return f"engine {of.get(spans.REASON, '')}"
        case "stream":
            stalls = of.get("millrace.stalls", 0)
            waited = f", waited {of.get('millrace.stalled_ms', 0):.0f} ms for the client" if stalls else ""
            return f"{of.get('millrace.bytes', 0)} bytes{waited}"
        case "admit" if of.get("millrace.tries", 1) > 1:
            return f"asked {of['millrace.tries']} times"
    if row.name.startswith("attempt"):
        after = next((link for link in row.links if link["traceId"] == trace.top.trace), None)
        parts = [f"{of.get('millrace.tokens', 0)} tokens"]
        if after:
            before = next((r.name for r in trace.rows if r.id == after["spanId"]), "another")
            parts.append(f"goes on after {before} ({_shown(str(after['attributes'].get(spans.REASON, '')))})")
        if spans.REASON in of:
            parts.append(f"given up: {_shown(str(of[spans.REASON]))}")
        return ", ".join(parts)
    return _shown(str(of.get(spans.ERROR_TYPE, "")))


def _about(link: dict[str, Any], trace: Trace) -> bool:
    return any(link["traceId"] == row.trace and link["spanId"] == row.id for row in trace.rows)
