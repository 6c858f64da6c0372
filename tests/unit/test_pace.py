"""Whoever has nothing in hand looks around seldom, and at once when something comes; whoever is busy does it
when it is awake for something else."""

import asyncio

import pytest

from millrace.pace import Pace, in_step

NEVER_S = 3600.0
FAILED_S = 30.0


async def over(pause: "asyncio.Task[None]") -> bool:
    """Whether the pause has ended by now; it is not left behind."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    done = pause.done()
    pause.cancel()
    await asyncio.wait([pause])
    return done


async def paused(pace: Pace, *, busy: bool) -> "asyncio.Task[None]":
    """A pause from the second 100 on."""
    pause = asyncio.create_task(pace.pause(100.0, busy=busy))
    await asyncio.sleep(0)
    assert not pause.done()
    return pause


async def test_work_that_comes_ends_the_slow_pause() -> None:
    """A request that comes to an idle process is watched from its first moment."""
    pace = Pace(NEVER_S, NEVER_S)
    pause = await paused(pace, busy=False)
    pace.hurry()
    assert await over(pause)


async def test_each_pause_ends_by_itself() -> None:
    """With work by its own time, without work by the other."""
    await asyncio.wait_for(Pace(0.001, NEVER_S).pause(0.0, busy=True), FAILED_S)
    await asyncio.wait_for(Pace(NEVER_S, 0.001).pause(0.0, busy=False), FAILED_S)


async def test_work_that_comes_to_the_busy_changes_nothing() -> None:
    """A thousand requests are no thousand looks around, and none is owed to the next pause."""
    pace = Pace(NEVER_S, NEVER_S)
    pace.hurry()
    pause = await paused(pace, busy=True)
    pace.hurry()
    assert not await over(pause)
    pace.hurry()
    assert not await over(await paused(pace, busy=False))


@pytest.mark.parametrize(("passed_s", "ends"), [(NEVER_S / 2, True), (NEVER_S / 2 - 1, False)])
async def test_who_is_awake_anyway_looks_around_when_it_is_nearly_time(passed_s: float, ends: bool) -> None:
    pace = Pace(NEVER_S, NEVER_S)
    pause = await paused(pace, busy=True)
    pace.awake(100.0 + passed_s)
    assert await over(pause) == ends


async def test_what_passes_an_idle_one_does_not_end_its_pause() -> None:
    pace = Pace(NEVER_S, NEVER_S)
    pace.awake(1e9)
    pause = await paused(pace, busy=False)
    pace.awake(1e9)
    assert not await over(pause)


def test_all_of_a_machine_do_it_at_the_same_moments() -> None:
    """However late one of them was; and one that was a little early does not do it twice."""
    later = [now + in_step(0.5, now) for now in (100.0, 100.2, 100.44, 100.46, 100.4999, 100.5)]
    assert later == pytest.approx([100.5, 100.5, 100.5, 101.0, 101.0, 101.0])
