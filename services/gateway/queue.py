"""The job queue as it is to be: its streams, and a consumer for each lane. What is declared, and what of it
JetStream does not have yet."""

from typing import Any

from millrace import settings
from millrace.jetstream import JetStream
from millrace.subjects import JOBS, STREAMS, Lane, Stream, consumer
from services.gateway.door.gate import Gate

ASSERT_S = 300.0
"""How long a tenant's consumer is taken to be there; unused, it goes after UNUSED_S."""

LEFTOVER_S = 30.0
"""No job outlives its deadline. One that is stored for so much longer is a place lost, as after a full disk,
when the server could not write down that it was done."""


class Queue:
    def __init__(self, stored: JetStream, given: settings.Gateway, gate: Gate):
        self._stored = stored
        self._given = given
        self._gate = gate
        self._lanes: dict[Lane, float] = {}  # and when its consumer was asserted last
        self._wanting: set[str] = set()  # streams and consumers that are not as they are to be

    @property
    def ready(self) -> bool:
        """Whether all of it is there that was declared so far."""
        return not self._wanting

    async def declare(self) -> None:
        """All of it, whatever is there already."""
        for stream in STREAMS:
            self._note(stream.name, await self._stored.declare_stream(self._config(stream)))
        for lane in list(self._lanes):  # others may come meanwhile
            await self._assert(lane)

    async def open(self, lane: Lane, now: float) -> None:
        """Jobs are about to come there: somebody must be able to pull them."""
        asserted_at = self._lanes.get(lane)
        if asserted_at is None or now - asserted_at > ASSERT_S:
            self._lanes[lane] = now
            await self._assert(lane)

    def _config(self, stream: Stream) -> dict[str, Any]:
        replicas = self._given.replicas
        if stream is not JOBS:
            return stream.config(replicas=replicas)
        each = self._given.tenant_queue if self._gate.closed else 0
        # There is room for what each tenant may have, so that none is refused for another's sake.
        models = {lane.model for lane in self._lanes}
        most = max(self._given.queue, each * len(self._gate.tenants) * max(len(models), 1))
        max_age_s = self._given.deadline_s + LEFTOVER_S
        return stream.config(most, max_age_s=max_age_s, replicas=replicas, each=each)

    async def _assert(self, lane: Lane) -> None:
        self._note(lane.consumer, await self._stored.declare_consumer(JOBS.name, consumer(lane)))

    def _note(self, name: str, done: bool) -> None:
        if done:
            self._wanting.discard(name)
        else:
            self._wanting.add(name)
