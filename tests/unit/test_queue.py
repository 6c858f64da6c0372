"""What of the job queue is declared, and when again. Real servers have their say in tests/integration."""

import json
from typing import Any

from millrace import settings
from millrace.jetstream import JetStream
from millrace.subjects import JOBS, UNUSED_S, Lane
from services.gateway.door.gate import Gate
from services.gateway.queue import ASSERT_S, Queue

ALICE, BOB = Lane("sim", "alice"), Lane("sim", "bob")


class Recorded(JetStream):
    """It has what it was asked for, except what it refuses."""

    def __init__(self) -> None:
        self.refuses: set[str] = set()
        self.declared: list[str] = []
        self.most_jobs = 0

    async def declare_stream(self, config: dict[str, Any]) -> bool:
        if config["name"] == JOBS.name:
            self.most_jobs = config["max_msgs"]
        return self._answer(config["name"])

    async def declare_consumer(self, stream: str, config: dict[str, Any]) -> bool:
        return self._answer(config["durable_name"])

    def _answer(self, name: str) -> bool:
        self.declared.append(name)
        return name not in self.refuses


def queue(**given: Any) -> tuple[Recorded, Queue]:
    stored, settled = Recorded(), settings.Gateway(**given)
    return stored, Queue(stored, settled, Gate(settled.keys, settled.deadline_s))


async def test_a_lane_is_asserted_when_it_is_opened_and_long_after() -> None:
    """However short a time the machine has been up, which is what the clock tells; and before JetStream drops
    what nobody used."""
    stored, asked = queue()
    for now in (1.0, 2.0, ASSERT_S, ASSERT_S + 1.1):
        await asked.open(ALICE, now)

    assert [ALICE.consumer] * 2 == stored.declared
    assert ASSERT_S < UNUSED_S


async def test_it_is_ready_when_nothing_is_wanting() -> None:
    """What was refused is declared again with all the rest; that others were taken since changes nothing."""
    stored, asked = queue()
    stored.refuses = {"DEAD", ALICE.consumer}
    await asked.declare()
    await asked.open(ALICE, 1.0)
    stored.refuses = {ALICE.consumer}
    await asked.declare()
    await asked.open(BOB, 1.0)
    before = asked.ready
    stored.refuses = set()
    await asked.declare()

    assert (False, True) == (before, asked.ready)
    assert ["JOBS", "DEAD", ALICE.consumer, BOB.consumer] == stored.declared[-4:]


async def test_there_is_room_for_what_each_tenant_may_have_of_each_model() -> None:
    """And never less than the whole queue may hold."""
    keys = json.dumps({"keys": {f"sha256:{n:064x}": f"tenant{n}" for n in range(3)}})
    stored, asked = queue(keys=keys, queue=100, tenant_queue=40)
    room = []
    for model in ("sim", "other"):
        await asked.open(Lane(model), 1.0)
        await asked.declare()
        room.append(stored.most_jobs)
    few, small = queue(keys=keys, queue=1000, tenant_queue=40)
    await small.declare()

    assert ([120, 240], 1000) == (room, few.most_jobs)
