"""An engine that notes when each of its steps was done: `python -m bench.witness NOTES`.

It is the engine itself. Each step costs it three clock readings more; the notes are written at the end.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from millrace import run, settings
from millrace.subjects import Role
from services.engine import actor
from services.engine.loop import Model, StepLoop
from services.engine.steps.scheduler import Output, Scheduler


class Note(msgspec.Struct, array_like=True):
    """One step."""

    at_ns: int
    requests: list[str]
    indexes: list[int]
    tokens: list[int]
    own_ns: int  # processor time of the thread of steps since the last one's tokens were handed over


_notes: list[tuple[int, int, list[Output]]] = []


class NotedLoop(StepLoop):
    def __init__(
        self,
        scheduler: Scheduler,
        model: Model,
        deliver: Callable[[list[Output]], object],
        failed: Callable[[BaseException], object],
        **more: Any,
    ):
        handed_over = 0

        def told(outputs: list[Output]) -> None:
            nonlocal handed_over
            own = time.thread_time_ns() - handed_over
            _notes.append((time.monotonic_ns(), own, outputs))
            deliver(outputs)
            handed_over = time.thread_time_ns()

        super().__init__(scheduler, model, told, failed, **more)


def read(path: Path) -> list[Note]:
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Note])


def main() -> int:
    with mock.patch.object(actor, "StepLoop", NotedLoop):
        status = run.main(Role.ENGINE, settings.load(settings.Engine, {}))
    notes = [
        Note(at, [o.request for o in outs], [o.index for o in outs], [o.token for o in outs], own)
        for at, own, outs in _notes
    ]
    Path(sys.argv[1]).write_bytes(msgspec.msgpack.encode(notes))
    return status


if __name__ == "__main__":
    sys.exit(main())
