"""What `millrace up` shows: one panel kept in place on a terminal, plain lines anywhere else."""

import contextlib
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from millrace import paint
from millrace.up.control import Row
from millrace.up.welcome import Welcome

HEAD = 5
"""Lines around the processes: two of a head, an empty one, their names, and the cursor's."""

EVENTS = 8
BAR = 12
COLOURS = {
    "ready": "32",
    "starting": "33",
    "draining": "33",
    "tight": "33",
    "short": "31",
    "silent": "31",
    "away": "31",
}


class View(Protocol):
    def event(self, text: str) -> None: ...
    def ready(self, welcome: Welcome) -> None: ...
    def show(self, rows: Sequence[Row]) -> None: ...
    def close(self) -> None: ...


def choose(out: TextIO, *, plain: bool, model: str, folder: Path, began: float) -> View:
    if plain or not out.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Lines(out, began)
    return Panel(out, model, folder, began)


def stamped(text: str, began: float) -> str:
    return f"[{time.monotonic() - began:7.2f}s] {text}"


class Lines:
    """One line an event."""

    def __init__(self, out: TextIO, began: float):
        self._out = _Screen(out)
        self._began = began

    def event(self, text: str) -> None:
        self._out.write(stamped(text, self._began) + "\n")

    def ready(self, welcome: Welcome) -> None:
        self._out.write("\n".join([f"ready: {welcome.url}", *welcome.lines(), ""]))

    def show(self, rows: Sequence[Row]) -> None:
        pass

    def close(self) -> None:
        pass


class Panel:
    """The state of every process, and what happened last."""

    def __init__(self, out: TextIO, model: str, folder: Path, began: float):
        self._canvas = Canvas(out)
        self._model = model
        self._folder = folder
        self._began = began
        self._welcome: Welcome | None = None
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._colour = paint.wanted(out)

    def event(self, text: str) -> None:
        self._events.append(stamped(text, self._began))

    def ready(self, welcome: Welcome) -> None:
        self._welcome = welcome

    def show(self, rows: Sequence[Row]) -> None:
        size = shutil.get_terminal_size()
        url = self._welcome.url if self._welcome else "starting"
        lines = picture(
            (f"millrace {self._model}   {url}", f"state and logs: {self._folder}"),
            rows,
            list(self._events),
            self._welcome.lines(size.columns) if self._welcome else [],
            columns=size.columns,
            height=size.lines,
            colour=self._colour,
        )
        self._canvas.draw(lines)

    def close(self) -> None:
        self._canvas.close()


class Canvas:
    """Lines on a terminal, drawn over the last ones; nothing is written while they stay the same."""

    def __init__(self, out: TextIO):
        self._out = _Screen(out)
        self._drawn: list[str] = []

    def draw(self, lines: list[str]) -> None:
        if lines == self._drawn:
            return
        # Up to where the last picture began, each line written anew, and what was below it cleared.
        up = f"\x1b[{len(self._drawn)}F" if self._drawn else "\x1b[?25l"
        self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._drawn = lines

    def close(self) -> None:
        self._out.write("\x1b[?25h")


def picture(
    head: tuple[str, str],
    rows: Sequence[Row],
    events: Sequence[str],
    welcome: Sequence[str] = (),
    *,
    columns: int,
    height: int,
    colour: bool,
) -> list[str]:
    """The panel's lines, none wider than the terminal and not more than it is high."""
    painted = paint.brush(colour)
    title, note = head
    names = f"{'role':<11} {'id':<18} {'pid':>7} {'state':<8} {'load':<{BAR + 8}} {'restarts':>8}"
    lines = [
        painted(title[:columns], "1"),
        painted(note[:columns], "2"),
        *(["", *welcome] if 0 < len(welcome) < height - HEAD - len(rows) else ()),
        "",
        painted(names[:columns], "2"),
    ]
    for row in rows:
        before = f"{row.role:<11} {row.id:<18} {row.pid or '':>7} "[:columns]
        state = f"{row.shown:<8}"[: columns - len(before)]
        after = f" {bar(row.load, row.room):<{BAR + 8}} {row.restarts or '':>8}"[
            : columns - len(before) - len(state)
        ]
        lines.append(before + painted(state, COLOURS.get(row.shown, "")) + after.rstrip())
    # One line is the cursor's. Without it the terminal scrolls, and the next picture lands too low.
    lines = lines[: max(1, height - 1)]
    room = height - 1 - len(lines) - 1
    if events and room > 0:
        lines += ["", *(painted(event[:columns], "2") for event in events[-room:])]
    return lines


def bar(load: int, room: int) -> str:
    if not room:
        return str(load) if load else ""
    full = min(BAR, round(BAR * load / room))
    return f"{'█' * full}{'·' * (BAR - full)} {load}/{room}"


class _Screen:
    """A place to write that may go away: the service goes on without it."""

    def __init__(self, out: TextIO):
        self._out = out
        self._gone = False

    def write(self, text: str) -> None:
        if self._gone:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, ValueError):
            self._gone = True
            # What is still in its buffer is tried again at exit; let that go nowhere, instead of failing.
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._out.fileno())
                os.close(null)
