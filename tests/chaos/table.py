"""The results of a run, for people and for programs."""

import math
from typing import Any

from tests.chaos.faults import Fault
from tests.chaos.trial import Outcome

HEAD = (
    "fault",
    "trials",
    "streams",
    "differ",
    "hang",
    "fail",
    "stall p50",
    "p99",
    "max",
    "target",
    "new p50",
    "max",
)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def beyond(outcome: Outcome) -> list[float]:
    return [max(0.0, stall - excused) for stall, excused in zip(outcome.stalls, outcome.excused, strict=True)]


def record(fault: Fault, outcome: Outcome) -> dict[str, Any]:
    stalls = beyond(outcome)
    return {
        "fault": fault.name,
        "trials": outcome.trials,
        "streams": outcome.streams,
        "mismatches": outcome.mismatches,
        "hangs": outcome.hangs,
        "failures": outcome.failures,
        "stall_ms": {
            name: _ms(percentile(stalls, share))
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
        "excused": fault.excuse,
        "excused_ms": [_ms(each) for each in sorted(set(outcome.excused)) if each],
        "target_ms": fault.target,
        "new_request_ms": {
            "p50": _ms(percentile(outcome.late, 0.5)),
            "max": _ms(percentile(outcome.late, 1.0)),
        },
        "notes": outcome.notes,
        "skipped": outcome.skipped,
    }


def _ms(seconds: float) -> int | None:
    return None if math.isnan(seconds) else round(seconds * 1000)


def table(records: list[dict[str, Any]]) -> str:
    rows = [HEAD, *(_row(each) for each in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.append("")
    lines.append(
        "Times in ms. stall: the longest wait between two chunks of a stream that ran when it happened,"
    )
    lines.append(
        "less its usual one and less what is excused; new: the first chunk of a request made just after."
    )
    for each in records:
        if each["excused"] and each["excused_ms"]:
            low, high = each["excused_ms"][0], each["excused_ms"][-1]
            lines.append(f"  {each['fault']}: excused is {each['excused']}, {low}-{high} ms")
        for note in dict.fromkeys(each["notes"]):
            lines.append(f"  {each['fault']}: {note}")
        if each["skipped"]:
            lines.append(f"  {each['fault']}: not run: {each['skipped']}")
        for kind in ("mismatches", "hangs", "failures"):
            lines += [f"  {each['fault']}: {kind}: {text}" for text in each[kind][:6]]
    return "\n".join(lines)


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    def text(value: int | None) -> str:
        return "-" if value is None else str(value)

    stall, new = each["stall_ms"], each["new_request_ms"]
    counts = [str(len(each[kind])) for kind in ("mismatches", "hangs", "failures")]
    if each["skipped"]:
        counts = ["not", "run", ""]
    return (
        each["fault"],
        str(each["trials"]),
        str(each["streams"]),
        *counts,
        text(stall["p50"]),
        text(stall["p99"]),
        text(stall["max"]),
        each["target_ms"],
        text(new["p50"]),
        text(new["max"]),
    )
