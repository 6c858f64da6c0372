"""When an engine takes nothing new because its step does not end, and when it gives up."""

from services.engine.jobs.standstill import ENDED_S, HELD_S, Standstill


def looked(steps: list[int | None], every_s: float) -> Standstill:
    made = Standstill(ends=True)
    for i, step in enumerate(steps):
        made.look(step, i * every_s)
    return made


def test_a_step_that_does_not_end_is_seen() -> None:
    """First nothing more is taken, then all is over, but for a processor; a change is told once."""
    made, processor = Standstill(ends=True), Standstill(ends=False)
    changes = [i for i in range(121) if made.look(7, i * 0.25)]

    assert [int(HELD_S / 0.25)] == changes
    assert changes == [i for i in range(121) if processor.look(7, i * 0.25)]
    assert (made.held, made.ended) == (True, 120 * 0.25 >= ENDED_S)
    assert (processor.held, processor.ended) == (True, False)
    assert made.look(8, 31.0)
    assert (0.0, False) == (made.seconds, made.held)


def test_steps_that_end_are_none_however_many() -> None:
    """Nor is a time without any."""
    assert not looked(list(range(1000)), 4.0).held
    assert not looked([None] * 1000, 0.5).held


def test_a_process_that_was_stopped_has_seen_nothing() -> None:
    """Its clock went on, its step did not."""
    made = looked([3, 3], 600.0)

    assert 1.0 == made.seconds
    assert not made.held
