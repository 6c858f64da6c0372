"""The panel's picture fits its terminal and shows what matters."""

import io
import re

import pytest

from millrace.control import Row, table
from millrace.panel import Lines, picture

HEAD = ("millrace sim   http://127.0.0.1:8000", "state and logs: /home/someone/.local/state/millrace/8000")
ROWS = [
    Row("nats", 10, "nats", "ready", 0, 0, 0, ""),
    Row("engine", 11, "engine_3f9a1c", "ready", 4, 16, 2, "sim"),
    Row("gateway", 0, "gateway_77aa01", "away", 3, 0, 1, ""),
]
EVENTS = [f"[   {n}.00s] event {n}" for n in range(8)]


@pytest.mark.parametrize("columns", [1, 20, 45, 60, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 7, 10, 24])
@pytest.mark.parametrize("colour", [True, False])
def test_it_is_never_larger_than_the_terminal(columns: int, height: int, colour: bool) -> None:
    """No line wraps and nothing scrolls: else the next picture is drawn in the wrong place."""
    lines = picture(HEAD, ROWS, EVENTS, columns=columns, height=height, colour=colour)

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
    lines.ready("http://127.0.0.1:8000")


def test_the_table_is_aligned() -> None:
    """Each column starts where its head does."""
    lines = table(ROWS).splitlines()

    assert (
        len({line.index(word) for line, word in zip(lines, ("STATE", "ready", "ready", "away"), strict=True)})
        == 1
    )
    assert "4/16" in lines[2]
