"""The contracts say the same in every place, and older bytes still mean what they meant."""

import ast
import json
import re
from graphlib import TopologicalSorter
from pathlib import Path

import msgspec
import pytest

from millrace import errors, messages, settings, subjects
from tests.contract.wire import types

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def test_every_message_has_one_place() -> None:
    """A message is carried by one subject, or answers on some, or is the input of a prompt."""
    carried = [m for s in subjects.SUBJECTS for m in s.carries if m not in (messages.Ping, messages.Release)]
    answers = {m for s in subjects.SUBJECTS for m in s.answers}
    inputs = {messages.Chat, messages.Text, messages.Ids}

    assert sorted(set(carried), key=repr) == sorted(carried, key=repr)
    assert {*carried, *answers, *inputs, messages.Ping, messages.Release} == set(types())


def test_tags_differ() -> None:
    """No two messages can be taken for each other."""
    tags = [m.__struct_config__.tag for m in types()]

    assert len(tags) == len(set(tags))


@pytest.mark.parametrize("stream", subjects.STREAMS, ids=lambda s: s.name)
def test_every_stream_has_limits(stream: subjects.Stream) -> None:
    """No stream can fill the disk."""
    config = stream.config()

    assert min(config["max_msgs"], config["max_bytes"], config["max_msg_size"]) > 0


@pytest.mark.parametrize("code", errors.Code)
def test_every_failure_has_a_meaning(code: errors.Code) -> None:
    """Each code has an HTTP status and an OpenAI error type, and the docstring tells of it."""
    meaning = errors.MEANINGS[code]

    assert 400 <= meaning.status < 600
    assert meaning.type.endswith("_error")
    assert f"{code} " in (errors.__doc__ or "") and str(meaning.status) in (errors.__doc__ or "")


def test_settings_keys_mean_one_thing() -> None:
    """A MILLRACE_* variable reaches every role that has the key, so its type is the same everywhere."""
    kinds: dict[str, set[object]] = {}
    for role in settings.ROLES.values():
        for field in msgspec.structs.fields(role):
            kinds.setdefault(field.name, set()).add(field.type)

    assert {} == {name: found for name, found in kinds.items() if len(found) > 1}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_still_decode(name: str) -> None:
    """Bytes of an older process mean the same to a newer one: fields are only appended."""
    message = getattr(messages, name)
    decoded = msgspec.msgpack.decode(bytes.fromhex(GOLDEN[name]["bytes"]), type=message)
    kinds = {field.name: field.type for field in msgspec.structs.fields(message)}
    expected = {k: msgspec.convert(v, kinds[k]) for k, v in GOLDEN[name]["fields"].items()}

    assert expected == {k: getattr(decoded, k) for k in expected}


def test_every_message_has_golden_bytes() -> None:
    """A message without them could change unnoticed."""
    assert {m.__name__ for m in types()} == set(GOLDEN)


SOURCES = {
    path: list(ast.walk(ast.parse(path.read_text())))
    for root in ("millrace", "services")
    for path in (ROOT / root).rglob("*.py")
}
"""What each file is made of."""


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in SOURCES[path]:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_service_imports_another() -> None:
    """A service is a process: what two of them share lies in millrace/, which imports none of them."""
    wrong = []
    for path in SOURCES:
        parts = path.relative_to(ROOT).parts
        own = f"services.{parts[1]}" if parts[0] == "services" else "-"
        wrong += [(path.name, i) for i in imports(path) if i.startswith("services") and not i.startswith(own)]

    assert [] == wrong


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in SOURCES}), ids=lambda folder: str(folder.relative_to(ROOT))
)
def test_imports_go_one_way(folder: Path) -> None:
    """What is in a folder has an order in which each file and folder needs only what came before it."""
    package = ".".join(folder.relative_to(ROOT).parts) + "."
    needs: dict[str, set[str]] = {}
    for path in SOURCES:
        if path.is_relative_to(folder) and path != folder / "__init__.py":
            part = path.relative_to(folder).parts[0].removesuffix(".py")
            found = {i.removeprefix(package).split(".")[0] for i in imports(path) if i.startswith(package)}
            needs.setdefault(part, set()).update(found - {part})

    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_only_the_command_line_imports_its_parts() -> None:
    """What nobody but `millrace` itself runs is no part of what the services share."""
    own = {
        ROOT / "millrace/cli.py",
        *(ROOT / "millrace/up").iterdir(),
        *(ROOT / "millrace/command").iterdir(),
    }
    others = [path for path in SOURCES if path not in own]

    assert [] == [(p.name, i) for p in others for i in imports(p) if re.match(r"millrace\.(up|command)\b", i)]


def test_only_the_bus_imports_nats() -> None:
    """The broker's client library is behind one file."""
    users = {p.name for p in SOURCES if any(i == "nats" or i.startswith("nats.") for i in imports(p))}

    assert {"bus.py"} == users


def test_no_unsafe_deserialising() -> None:
    """Nothing that comes over the bus or out of a file can run as code."""
    forbidden = {"pickle", "marshal", "shelve", "dill", "yaml"}
    calls = [
        (path.name, node.func.id)
        for path, nodes in SOURCES.items()
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
    ]

    assert [] == [(p.name, i) for p in SOURCES for i in imports(p) if i.split(".")[0] in forbidden]
    assert [] == calls
