"""What runs short makes the engine take less, then nothing, and it comes back by itself."""

from millrace.capacity import Memory
from millrace.machine import Throttled
from services.engine.jobs.pressure import PATIENCE, Level, Pressure, Sample


def sample(available: int, periods: int = 0, stopped: int = 0) -> Sample:
    """Of a hundred units of memory."""
    return Sample(Memory(100, available), Throttled(periods, stopped), 1)


def test_less_then_none() -> None:
    """Half of the slots, then none; what is over that already stays."""
    pressure = Pressure(8)
    seen = []
    for available in (50, 9, 3):
        pressure.sample(sample(available))
        seen.append([pressure.room(room, 8 - room) for room in (8, 5, 1)])

    assert [[8, 5, 1], [4, 1, 0], [0, 0, 0]] == seen
    assert {"tight": 1, "short": 1} == pressure.counts


def test_one_slot_is_left_while_it_is_tight() -> None:
    """An engine with a single slot is no use without it."""
    pressure = Pressure(1)
    pressure.sample(sample(9))

    assert ("tight", 1) == (pressure.name, pressure.room(1, 0))


def test_better_has_to_last() -> None:
    """A second, and clearly above the mark; worse counts at once."""
    pressure = Pressure(8)
    assert pressure.sample(sample(3))
    for _ in range(3 * PATIENCE):
        assert not pressure.sample(sample(4))  # above the mark, but not clear of it
    for _ in range(PATIENCE - 1):
        assert not pressure.sample(sample(50))
    assert not pressure.sample(sample(3))
    for _ in range(PATIENCE - 1):
        assert not pressure.sample(sample(50))
    assert Level.SHORT is pressure.level
    assert pressure.sample(sample(50))

    assert (Level.CALM, "", 8) == (pressure.level, pressure.name, pressure.room(8, 0))


def test_a_cgroup_without_time_is_tight() -> None:
    """If it was stopped in nearly all of its periods; what was before the engine came does not count."""
    pressure = Pressure(8)
    assert not pressure.sample(sample(50, 1000, 1000))
    assert not pressure.sample(sample(50, 1010, 1005))
    assert pressure.sample(sample(50, 1020, 1015))
    assert "tight" == pressure.name
    for _ in range(PATIENCE):
        pressure.sample(sample(50, 1020, 1015))

    assert "" == pressure.name
