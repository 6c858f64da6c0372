"""What `millrace top` makes of what the gateway tells."""

import re
from typing import Any

import pytest

from millrace.command.top import Seen, picture, plain, plot


def process(role: str, load: int = 0, room: int = 0, cpu_s: float = 0.0, **more: Any) -> dict[str, Any]:
    told = {"role": role, "id": f"{role}_1", "pid": 7, "state": "ready", "load": load, "room": room}
    told |= {"model": "demo", "pressure": "", "cpu_s": cpu_s, "rss": 120e6, "cache_used": None}
    return {**told, **more}


def now(at: float, *processes: dict[str, Any], rate: float = 0.0) -> dict[str, Any]:
    return {"at": at, "processes": processes, "tokens_per_s": rate, "waiting": 3, "running": 2}


def seen() -> Seen:
    made = Seen()
    ride = {"request": "a", "first_ms": 10.0}
    second = {"at": 99.0, "tokens_per_s": 50.0}
    engine = process("engine", 3, 16, cache_used=0.25)
    made.take("picture", {**now(100.0, engine, process("gateway")), "requests": [ride], "seconds": [second]})
    return made


def test_processor_time_is_a_share_of_the_seconds_gone_by() -> None:
    """Not told before a second has passed, and of the last seconds alone."""
    made = seen()
    assert made.busy("engine_1") is None

    made.take("now", now(102.0, process("engine", cpu_s=1.0)))
    assert made.busy("engine_1") == pytest.approx(0.5)

    made.take("now", now(110.0, process("engine", cpu_s=1.0)))
    made.take("now", now(112.0, process("engine", cpu_s=3.0)))
    assert made.busy("engine_1") == pytest.approx(1.0)
    assert made.busy("gateway_1") is None  # it is gone


def test_the_time_to_the_first_token_is_the_median_of_the_latest() -> None:
    """Those of the picture and those that ended since; a request that had none does not count."""
    made = seen()
    for request, ms in (("b", 30.0), ("c", 20.0), ("d", None)):
        made.take("happened", {"kind": "ended", "request": request, "first_ms": ms})

    assert made.facts["first token"] == "20 ms"
    assert made.ended == 3


def test_each_second_is_plotted_once() -> None:
    """However often the gateway tells of it."""
    made = seen()
    for at in (100.2, 100.7, 101.1, 101.6):
        made.take("now", now(at, rate=100.0))

    assert list(made.rates) == [50.0, 100.0]


@pytest.mark.parametrize("columns", [1, 20, 60, 200])
@pytest.mark.parametrize("height", [1, 3, 24])
@pytest.mark.parametrize("colour", [True, False])
def test_it_is_never_larger_than_the_terminal(columns: int, height: int, colour: bool) -> None:
    lines = picture(seen(), "http://127.0.0.1:8000", columns=columns, height=height, colour=colour)

    assert len(lines) <= max(1, height - 1)
    assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= columns for line in lines)
    assert colour or not any("\x1b" in line for line in lines)


def test_a_pressed_engine_and_its_load_are_shown() -> None:
    made = seen()
    made.take("now", now(101.0, process("engine", 4, 16, pressure="tight")))
    lines = picture(made, "", columns=120, height=24, colour=False)
    engine = next(line for line in lines if line.startswith("engine"))

    assert " tight " in engine
    assert "███········· 4/16" in engine


def test_a_program_reads_a_table() -> None:
    """No bars and no colours; the numbers of the service stand before it."""
    first, _, head, engine, gateway = plain(seen()).splitlines()

    assert "tokens/s 50" in first
    assert "waiting 3" in first
    assert head.split() == ["ROLE", "ID", "PID", "STATE", "LOAD", "MEMORY", "CACHE"]
    assert engine.split() == ["engine", "engine_1", "7", "ready", "3/16", "120", "MB", "25", "%"]
    assert gateway.split()[0] == "gateway"


def test_a_plot_is_as_high_as_its_highest() -> None:
    assert plot([0, 5, 10], 10) == " ▄█"
    assert plot([0, 5, 10], 2) == "▄█"
    assert plot([], 10) == plot([1.0], 0) == ""
