"""What may be lost never holds up what may not."""

import threading

from millrace.outlet import Outlet


def test_nothing_waits_for_a_writer_that_hangs() -> None:
    """Its queue is bounded, what does not fit is counted, and closing gives up on it."""
    hangs, busy = threading.Event(), threading.Event()

    def write(items: list[int]) -> None:
        busy.set()
        hangs.wait()

    outlet = Outlet("test", write, size=3, pause_s=0.0)
    outlet.put(0)
    busy.wait()
    for item in range(10):
        outlet.put(item)
    before = outlet.dropped
    outlet.close(0.05)

    assert (7, 10) == (before, outlet.dropped)
    hangs.set()


def test_what_is_there_is_written_before_the_end() -> None:
    """Closing writes what waits, in order, even if an earlier write failed."""
    written: list[int] = []

    def write(items: list[int]) -> None:
        if 0 in items:
            raise ConnectionError
        written.extend(items)

    outlet = Outlet("test", write, size=10, batch=1, pause_s=0.01)
    for item in range(4):
        outlet.put(item)
    outlet.close(5.0)

    assert (1, [1, 2, 3], 0) == (outlet.failed, written, outlet.dropped)
