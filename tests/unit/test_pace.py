"""Whoever has nothing in hand looks around seldom, and at once when something comes."""

import asyncio

from millrace.pace import Pace

NEVER_S = 3600.0
FAILED_S = 30.0


async def test_work_that_comes_ends_the_slow_pause() -> None:
    """A request that comes to an idle process is watched from its first moment."""
    pace = Pace(NEVER_S, NEVER_S)
    pause = asyncio.create_task(pace.pause(busy=False))
    await asyncio.sleep(0)
    before = pause.done()
    pace.hurry()
    await asyncio.wait_for(pause, FAILED_S)
    assert not before


async def test_each_pause_ends_by_itself() -> None:
    """With work by its own time, without work by the other."""
    await asyncio.wait_for(Pace(0.001, NEVER_S).pause(busy=True), FAILED_S)
    await asyncio.wait_for(Pace(NEVER_S, 0.001).pause(busy=False), FAILED_S)


async def test_work_that_comes_to_the_busy_changes_nothing() -> None:
    """A thousand requests are no thousand looks around, and none is owed to the next pause."""
    pace = Pace(NEVER_S, NEVER_S)
    pace.hurry()
    pauses = [asyncio.create_task(pace.pause(busy=busy)) for busy in (True, False)]
    await asyncio.sleep(0)
    over = [pause.done() for pause in pauses]
    pauses[1].cancel()
    await asyncio.wait(pauses[1:])
    pace.hurry()
    await asyncio.sleep(0)
    over.append(pauses[0].done())
    pauses[0].cancel()
    await asyncio.wait(pauses)
    assert over == [False, False, False]
