"""Whether a request's trace is whole: all its hops, each below one that is there, linked at a fail-over."""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

Span = dict[str, Any]

GATEWAYS = {"POST /v1/chat/completions", "chat", "admit", "broker wait", "attempt", "stream"}
"""What the owner knows itself."""

TOLD = {"tokenizer wait", "tokenize", "publish", "claim", "prefill", "decode", "detokenize"}
"""What others tell it, in messages that are sent once: where they or NATS are killed, one may be missing."""


def by_trace(spans: list[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        found[span["trace"]].append(span)
    return found


def ailments(spans: list[Span], *, undisturbed: bool) -> list[str]:
    """What is wrong with one request's trace."""
    if not spans:
        return ["there is no trace"]
    ids = {span["id"] for span in spans}
    names = Counter(_kind(span["name"]) for span in spans)
    wrong = []
    if len(ids) != len(spans):
        wrong.append("a span is there twice")
    tops = [span["name"] for span in spans if not span["parent"]]
    if tops != ["POST /v1/chat/completions"]:
        wrong.append(f"it begins with {tops}")
    if lost := sorted({span["name"] for span in spans if span["parent"] and span["parent"] not in ids}):
        wrong.append(f"no parent of {lost}")
    if missing := sorted((GATEWAYS | TOLD if undisturbed else GATEWAYS) - set(names)):
        wrong.append(f"no {', '.join(missing)}")
    attempts = sorted(
        (span for span in spans if span["name"].startswith("attempt ")),
        key=lambda span: int(span["name"].split()[1]),
    )
    for before, after in pairwise(attempts):
        if before["id"] not in after["links"]:
            wrong.append(f"no link from {after['name']} to the one before")
    return wrong


def attempts(spans: list[Span]) -> int:
    return sum(span["name"].startswith("attempt ") for span in spans)


def _kind(name: str) -> str:
    """Without the model, or the number."""
    word = name.partition(" ")[0]
    return word if word in ("chat", "attempt") else name
