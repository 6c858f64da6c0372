"""What the rows of a step may say, seen to while the model runs: it depends on no logits."""

import threading
import weakref
from queue import SimpleQueue

from services.engine.steps.sequence import Sequence


class Ahead:
    """By a thread and two queues: an executor's locks, and its futures', let go of the interpreter, so that
    the step would wait for the first mask before it begins."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[list[Sequence]] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._under_way = False

    def begin(self, sequences: list[Sequence]) -> None:
        if guided := [s for s in sequences if s.guide is not None]:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_look, args=(self._asked, self._done), name="masks", daemon=True
                )
                self._thread.start()
                weakref.finalize(self, self._asked.put, [])
            self._asked.put(guided)
            self._under_way = True

    def end(self) -> None:
        """They are all there."""
        if self._under_way:
            self._under_way = False
            if error := self._done.get():
                raise error


def _look(asked: "SimpleQueue[list[Sequence]]", done: "SimpleQueue[BaseException | None]") -> None:
    """Until nobody is left to ask."""
    while sequences := asked.get():
        try:
            for sequence in sequences:
                sequence.look()
            done.put(None)
        except BaseException as error:
            done.put(error)
