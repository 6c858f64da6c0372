"""docs/wire.md, from the contracts themselves: python -m tests.contract.wire [--check]"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from millrace import errors, messages, subjects

PAGE = Path(__file__).parents[2] / "docs" / "wire.md"


def types() -> list[type[messages.Message]]:
    """Every message, in the order of the file, which is the order of a request."""
    found = dict.fromkeys(value for value in vars(messages).values() if isinstance(value, type))
    return [t for t in found if issubclass(t, messages.Message) and t is not messages.Message]


def page() -> str:
    lines = [
        "# On the wire",
        "",
        "Made by `make docs` from `millrace/messages.py`, `subjects.py` and `errors.py`; do not edit.",
        "",
        "## Subjects",
        "",
        "| subject | carries | answered by | from | to | |",
        "|---|---|---|---|---|---|",
    ]
    for subject in subjects.SUBJECTS:
        lines.append(
            f"| `{subject.pattern}` | {_names(subject.carries)} | {_names(subject.answers)} "
            f"| {', '.join(subject.senders)} | {', '.join(subject.hearers)} | {subject.why} |"
        )
    lines += ["", "## Streams", "", "| stream | subject | keeps | limits | |", "|---|---|---|---|---|"]
    for stream in subjects.STREAMS:
        age = f", {stream.max_age_s / 86400:g} days" if stream.max_age_s else ""
        lines.append(
            f"| {stream.name} | `{stream.subject.wildcard}` | {stream.retention}, discards {stream.discard} "
            f"| {stream.max_msgs} messages, {stream.max_bytes >> 20} MiB, "
            f"{stream.max_msg_size >> 10} KiB each{age} | {stream.why} |"
        )
    lines += [
        "",
        f"Engines pull from a durable consumer per model, with an ack wait of {subjects.ACK_WAIT_S:g} s.",
        "",
        "## Messages",
        "",
        "MessagePack arrays, the tag first. Fields are only ever appended, with a default.",
        "",
    ]
    for message in types():
        if message.__doc__:
            lines += [f"### {message.__name__}", "", message.__doc__.strip().replace("\n    ", "\n"), ""]
        else:
            lines += [f"### {message.__name__}", ""]
        lines += [f"`[{', '.join([repr(message.__struct_config__.tag), *_fields(message)])}]`", ""]
    parts = [
        messages.Mark,
        messages.Hop,
        messages.Spread,
        messages.Tallied,
        messages.Sampling,
        messages.Form,
        messages.Odds,
        messages.Run,
        messages.Likely,
        messages.SpelledOdds,
        messages.Said,
        messages.Ref,
        messages.Held,
        messages.Gap,
        messages.Voice,
    ]
    lines += ["## Parts of messages", ""]
    lines += [f"- {part.__name__}: `[{', '.join(_fields(part))}]`" for part in parts]
    lines += ["", "## Failures", "", "| code | HTTP | type | retry |", "|---|---|---|---|"]
    for code, meaning in errors.MEANINGS.items():
        lines.append(f"| {code} | {meaning.status} | {meaning.type} | {'yes' if meaning.retry else 'no'} |")
    lines += ["", "## Rights", "", "What each role's NATS user may do; everything else is refused.", ""]
    for role in subjects.Role:
        rights = subjects.rights(role)
        lines += [f"- **{role}** publishes {_code(rights['publish'])}; hears {_code(rights['subscribe'])}."]
    return "\n".join(lines) + "\n"


def _fields(struct: Any) -> list[str]:
    return [field.name for field in msgspec.structs.fields(struct)]


def _names(found: tuple[type[messages.Message], ...]) -> str:
    return ", ".join(t.__name__ for t in found) or "-"


def _code(subjects_: list[str]) -> str:
    return ", ".join(f"`{s}`" for s in subjects_) or "nothing"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/wire.md is not what the contracts say: run `make docs`")
