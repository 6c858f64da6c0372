"""A way out for what may be lost: a thread of its own, a bounded queue, and drops that are counted.

Whoever puts something in never waits, whatever the disk or the collector behind it does.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

SAY_EVERY_S = 60.0
"""A place that fails, fails again and again: it is said so often."""

log = logging.getLogger("millrace.outlet")

T = TypeVar("T")


class Outlet(Generic[T]):
    def __init__(
        self,
        name: str,
        write: Callable[[list[T]], None],
        *,
        size: int,
        batch: int = 512,
        pause_s: float = 0.1,
    ):
        """`write` is called in the thread, with what came within `pause_s`, and may take its time."""
        self.dropped = 0
        self.failed = 0
        self._name = name
        self._write = write
        self._size = size
        self._batch = batch
        self._pause_s = pause_s
        self._queue: deque[T] = deque()
        self._some = threading.Event()
        self._closing = threading.Event()
        self._said_at = -SAY_EVERY_S
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        if len(self._queue) >= self._size or self._closing.is_set():
            self.dropped += 1
            return
        self._queue.append(item)
        self._some.set()

    def close(self, patience: float) -> None:
        """What is there is written if that takes no longer than `patience` seconds, and left if it does."""
        self._closing.set()
        self._some.set()
        self._thread.join(patience)
        self.dropped += len(self._queue)

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            self._closing.wait(self._pause_s)
            while self._queue:
                items = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch))]
                try:
                    self._write(items)
                except Exception as error:
                    self.failed += len(items)
                    if time.monotonic() - self._said_at >= SAY_EVERY_S:
                        self._said_at = time.monotonic()
                        log.warning("%s: %s (%d lost so far)", self._name, error, self.failed)
            if self._closing.is_set():
                return
