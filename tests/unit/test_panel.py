"""The panel's picture fits its terminal and shows what matters."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest

from millrace.up.control import Row, table
from millrace.up.panel import Lines, picture
from millrace.up.welcome import Welcome, program

HEAD = ("millrace sim   http://127.0.0.1:8000", "state and logs: /home/someone/.local/state/millrace/8000")
ROWS = [
    Row("nats", 10, "nats", "ready", 0, 0, 0, ""),
    Row("engine", 11, "engine_3f9a1c", "ready", 4, 16, 2, "sim"),
    Row("gateway", 0, "gateway_77aa01", "away", 3, 0, 1, ""),
]
WELCOME = Welcome("http://127.0.0.1:8000", "demo", "millrace", keyed=False)
EVENTS = [f"[   {n}.00s] event {n}" for n in range(8)]


@pytest.mark.parametrize("columns", [1, 20, 45, 60, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 7, 10, 24])
@pytest.mark.parametrize("colour", [True, False])
def test_it_is_never_larger_than_the_terminal(columns: int, height: int, colour: bool) -> None:
    """No line wraps and nothing scrolls: else the next picture is drawn in the wrong place."""
    welcome = WELCOME.lines(columns)
    lines = picture(HEAD, ROWS, EVENTS, welcome, columns=columns, height=height, colour=colour)

    assert len(lines) <= max(1, height - 1)
    assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= columns for line in lines)


def test_the_latest_events_stay() -> None:
    """Where there is no room for all, the oldest go."""
    lines = picture(HEAD, ROWS, EVENTS, columns=80, height=12, colour=False)

    assert lines[-1] == EVENTS[-1]
    assert EVENTS[0] not in lines


def test_a_row_shows_its_load_and_its_restarts() -> None:
    """The bar is as full as the process."""
    lines = picture(HEAD, ROWS, [], columns=80, height=24, colour=False)
    engine = next(line for line in lines if "engine_3f9a1c" in line)

    assert "███········· 4/16" in engine
    assert engine.endswith(" 2")


def test_colour_is_only_there_when_asked_for() -> None:
    """NO_COLOR means no escape sequence in the lines."""
    assert not any(
        "\x1b" in line for line in picture(HEAD, ROWS, EVENTS, columns=80, height=24, colour=False)
    )
    assert any("\x1b" in line for line in picture(HEAD, ROWS, EVENTS, columns=80, height=24, colour=True))


def test_a_closed_output_does_not_end_the_service() -> None:
    """`millrace up | head -1` goes on serving."""
    out = io.StringIO()
    lines = Lines(out, 0.0)
    out.close()
    lines.event("gone")
    lines.ready(WELCOME)


def test_whoever_reads_nothing_else_is_told_where_to_go() -> None:
    """`ready:` stays a line of its own, as programs read it; the page, the base URL and a command follow."""
    out = io.StringIO()
    Lines(out, 0.0).ready(WELCOME)
    first, *rest = out.getvalue().splitlines()

    assert first == "ready: http://127.0.0.1:8000"
    assert [line.split()[1] for line in rest if line.startswith(("page", "base_url"))] == [
        "http://127.0.0.1:8000/ui",
        "http://127.0.0.1:8000/v1",
    ]
    assert shlex.split(rest[-1])[0] == "curl"


@pytest.mark.parametrize("columns", [0, 90, 120, 300])
@pytest.mark.parametrize("model", ["demo", "it's $HOME/`ö`"])
def test_what_is_to_be_pasted_is_one_command_at_any_width(columns: int, model: str) -> None:
    """A shell makes the same of it, in one line or broken in two."""
    lines = Welcome("http://127.0.0.1:8000", model, "millrace", keyed=True).lines(columns)
    command = shlex.split("\n".join(lines[lines.index("paste:") + 1 :]))

    assert (command[0], command[-1]) == ("curl", "http://127.0.0.1:8000/v1/chat/completions")
    assert "Authorization: Bearer $OPENAI_API_KEY" in command
    assert json.loads(command[command.index("-d") + 1])["model"] == model


def test_a_model_of_vectors_is_not_chatted_with() -> None:
    """What is to be pasted asks for an embedding."""
    lines = Welcome("http://h:1", "embedder", "millrace", keyed=False, vectors=True).lines()
    command = shlex.split(lines[-1])

    assert not any(line.startswith("chat") for line in lines)
    assert command[-1] == "http://h:1/v1/embeddings"
    assert json.loads(command[2])["model"] == "embedder"


def test_half_a_command_is_not_shown() -> None:
    """On a narrow terminal what does not fit is left out, and what fits stays."""
    lines = WELCOME.lines(40)

    assert lines == ["page      http://127.0.0.1:8000/ui"]


def test_a_command_is_called_as_its_user_called_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name alone where the shell finds it, else by its path."""
    installed = tmp_path / "millrace"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert program(str(installed)) == "millrace"
    assert program(".venv/bin/millrace") == ".venv/bin/millrace"
    assert program("/somewhere/millrace/__main__.py") == "python -m millrace"


def test_the_table_is_aligned() -> None:
    """Each column starts where its head does."""
    lines = table(ROWS).splitlines()

    assert (
        len({line.index(word) for line, word in zip(lines, ("STATE", "ready", "ready", "away"), strict=True)})
        == 1
    )
    assert "4/16" in lines[2]
