"""`millrace top`: a running service as its gateway sees it, live, or once as a table."""

import contextlib
import json
import os
import shutil
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from typing import Any, TextIO

from millrace import paint
from millrace.columns import size, table
from millrace.command.client import Client, Refused
from millrace.up.panel import BAR, COLOURS, Canvas, bar

WINDOW_S = 3.0
"""Over which a process' share of a processor is taken: it tells of itself twice a second."""

SECONDS = 120
RIDES = 50
"""Of the plot, and the requests that the time to the first token is taken of."""

LEVELS = " ▁▂▃▄▅▆▇█"
HEAD = ("ROLE", "ID", "PID", "STATE", "LOAD", "CPU", "MEMORY", "CACHE")


class Seen:
    """What the gateway has told so far."""

    def __init__(self) -> None:
        self.at = 0.0
        self.processes: list[dict[str, Any]] = []
        self.rates: deque[float] = deque(maxlen=SECONDS)  # tokens of each second
        self.waiting = self.running = 0
        self.firsts: OrderedDict[str, float] = OrderedDict()  # milliseconds, by request
        self.ended = self.lost = 0  # requests, and engines that some were taken from
        self._cpu: dict[str, deque[tuple[float, float]]] = {}
        self._second = 0

    def take(self, name: str, told: dict[str, Any]) -> None:
        if name == "happened":
            self._happened(told)
            return
        self.at, self.processes = told["at"], told["processes"]
        self.waiting, self.running = told["waiting"], told["running"]
        if name == "picture":
            self.rates = deque((each["tokens_per_s"] for each in told["seconds"]), maxlen=SECONDS)
            self._second = int(self.at)
            self.firsts.clear()
            for ride in told["requests"]:
                self._first(ride["request"], ride["first_ms"])
        elif int(self.at) != self._second:
            self._second = int(self.at)
            self.rates.append(told["tokens_per_s"])
        known = {process["id"] for process in self.processes}
        self._cpu = {id: samples for id, samples in self._cpu.items() if id in known}
        for process in self.processes:
            samples = self._cpu.setdefault(process["id"], deque())
            samples.append((self.at, process["cpu_s"]))
            while self.at - samples[0][0] > WINDOW_S:
                samples.popleft()

    def _happened(self, told: dict[str, Any]) -> None:
        if told["kind"] == "ended":
            self.ended += 1
            self._first(told["request"], told["first_ms"])
        elif told["kind"] == "lost":
            self.lost += 1

    def _first(self, request: str, ms: float | None) -> None:
        if ms is not None:
            self.firsts[request] = ms
        while len(self.firsts) > RIDES:
            self.firsts.popitem(last=False)

    @property
    def rate(self) -> float:
        return self.rates[-1] if self.rates else 0.0

    def busy(self, id: str) -> float | None:
        """Processors' worth of time; None until that can be told."""
        samples = self._cpu.get(id)
        if not samples or samples[-1][0] - samples[0][0] < 1.0:
            return None
        return max(0.0, (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0]))

    @property
    def facts(self) -> dict[str, str]:
        engines = [process for process in self.processes if process["role"] == "engine"]
        free = sum(engine["room"] - engine["load"] for engine in engines)
        first = f"{statistics.median(self.firsts.values()):.0f} ms" if self.firsts else "-"
        return {
            "tokens/s": f"{self.rate:.0f}",
            "running": str(self.running),
            "waiting": str(self.waiting),
            "free slots": str(max(0, free)),
            "first token": first,
        }

    def rows(self) -> list[tuple[str, ...]]:
        made: list[tuple[str, ...]] = []
        for process in self.processes:
            busy, cache = self.busy(process["id"]), process["cache_used"]
            made.append(
                (
                    process["role"],
                    process["id"],
                    str(process["pid"]),
                    _state(process),
                    bar(process["load"], process["room"]),
                    "" if busy is None else f"{busy * 100:.0f} %",
                    size(int(process["rss"])),
                    "" if cache is None else f"{cache * 100:.0f} %",
                )
            )
        return made


def _state(process: dict[str, Any]) -> str:
    pressed = process["pressure"] and process["state"] == "ready"
    return str(process["pressure"] if pressed else process["state"])


def plot(values: Sequence[float], width: int) -> str:
    """The latest of them, the highest as high as a letter."""
    shown = list(values)[-width:] if width > 0 else []
    most = max([*shown, 1.0])
    return "".join(LEVELS[round(value / most * (len(LEVELS) - 1))] for value in shown)


def picture(seen: Seen, url: str, *, columns: int, height: int, colour: bool) -> list[str]:
    """Lines that fit the terminal."""
    painted = paint.brush(colour)
    served = sorted({process["model"] for process in seen.processes if process["model"]})
    rows = [
        (role, id, pid, state.ljust(8), load.ljust(BAR), *rest)
        for role, id, pid, state, load, *rest in seen.rows()
    ]
    head, *lines = table(HEAD, rows).splitlines()
    for at, (line, row) in enumerate(zip(lines, seen.rows(), strict=True)):
        begin = head.index("STATE")
        before, state, after = line[:begin], line[begin : begin + len(row[3])], line[begin + len(row[3]) :]
        room = columns - len(before)
        shown = painted(state[: max(0, room)], COLOURS.get(row[3], ""))
        lines[at] = before[:columns] + shown + after[: max(0, room - len(state))]
    facts = "   ".join(f"{name} {said}" for name, said in seen.facts.items())
    since = f"since you look: {seen.ended} requests ended, {seen.lost} engines lost amid one"
    made = [
        painted(f"millrace {', '.join(served)}   {url}"[:columns], "1"),
        facts[:columns],
        painted(plot(seen.rates, min(columns, SECONDS)), "36"),
        painted(head[:columns], "2"),
        *lines,
        "",
        painted(since[:columns], "2"),
    ]
    return made[: max(1, height - 1)]


def plain(seen: Seen) -> str:
    """For a program, or a log."""
    facts = "   ".join(f"{name} {said}" for name, said in seen.facts.items())
    rows = [
        (
            *row[:4],
            f"{process['load']}/{process['room']}" if process["room"] else str(process["load"]),
            *row[6:],
        )
        for row, process in zip(seen.rows(), seen.processes, strict=True)
    ]
    return f"{facts}\n\n{table((*HEAD[:5], *HEAD[6:]), rows)}"


def run(client: Client, out: TextIO, *, once: bool) -> int:
    """The exit status. It ends by Ctrl-C, and comes back when the service does."""
    live = not once and out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if not live:
        seen = Seen()
        with contextlib.closing(_events(client)) as events:
            name, data = next(events)
            seen.take(name, json.loads(data))
        print(plain(seen), file=out)
        return 0
    canvas = Canvas(out)
    try:
        _look(client, canvas, colour=paint.wanted(out))
    except KeyboardInterrupt:
        return 0
    finally:
        canvas.close()
    return 0


def _look(client: Client, canvas: Canvas, *, colour: bool) -> None:
    seen = Seen()
    while True:
        try:
            with contextlib.closing(_events(client)) as events:
                for name, data in events:
                    seen.take(name, json.loads(data))
                    if name == "happened":
                        continue
                    terminal = shutil.get_terminal_size()
                    canvas.draw(
                        picture(
                            seen, client.url, columns=terminal.columns, height=terminal.lines, colour=colour
                        )
                    )
        except Refused as error:
            # Its gateway is replaced, say. Who was never there, or does not want to be seen, is told.
            if not seen.processes or error.status in (401, 404):
                raise
        time.sleep(0.5)


def _events(client: Client) -> Generator[tuple[str, str]]:
    try:
        yield from client.events("GET", "/ui/events")
    except Refused as error:
        if error.status not in (401, 404):
            raise
        said = (
            "where keys are asked for, its live view is shown to nobody, as it tells of everybody's requests"
        )
        raise Refused(
            f"{client.url}: {said} (`millrace ps` and /metrics tell the rest)", error.status
        ) from None
