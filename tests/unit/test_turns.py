"""Turns among tenants: by tokens, by weight, by priority, and never all the slots."""

import random
from collections import Counter

import pytest

from millrace.messages import Job, Sampling, Waiting
from services.engine.jobs.roster import Hold, Phase, Roster
from services.engine.jobs.turns import COMPANY_S, Turns
from services.engine.steps.scheduler import Scheduler

SLOTS = 8


def waiting(tenant: str, *, priority: str = "normal", weight: float = 1.0, share: float = 1.0) -> Waiting:
    return Waiting(tenant, priority, weight, share)  # type: ignore[arg-type]


class Engine:
    """Slots that run jobs of random lengths, and a queue that has what the tenants put in."""

    def __init__(self, *lanes: Waiting, slots: int = SLOTS):
        self.roster = Roster("e", slots, Scheduler(slots, 64), 0.0)
        self.room = slots
        self.turns = Turns("sim", slots, self.roster, lambda: min(self.room, self.roster.room))
        self.lanes = {f"sim-{lane.priority}-{lane.tenant}": lane for lane in lanes}
        self.queued: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.order: list[str] = []
        self.now = 0.0
        self._random = random.Random(1)
        self._left: dict[str, tuple[str, int]] = {}
        self._made = 0

    def put(self, tenant: str, count: int = 1) -> None:
        name, lane = next((name, lane) for name, lane in self.lanes.items() if lane.tenant == tenant)
        self.queued[name] += count
        self.turns.bell([lane])

    def pull(self, lengths: dict[str, int] | None = None) -> None:
        while plan := self.turns.plan(self.now):
            for name, count in plan.items():
                came = min(count, self.queued[name])
                for _ in range(came):
                    self.queued[name] -= 1
                    self._start(name, (lengths or {}).get(self.lanes[name].tenant, 0))
                if came < count:
                    self.turns.over(name, count - came)

    def _start(self, name: str, length: int) -> None:
        self._made += 1
        request, tenant = f"gw-{self._made}", self.lanes[name].tenant
        job = Job(request, 1, b"\0" * 40, Sampling(1), 1000)
        self.turns.took(name, request, 10, 1000, self.now, more=self.queued[name] > 0)
        self.roster.holds[request] = Hold(job, "", Phase.RUNNING, self.now)
        self._left[request] = tenant, length or self._random.randint(1, 60)
        self.order.append(tenant)
        self.tokens[tenant] += 10

    def step(self) -> None:
        self.now += 0.01
        for request, (tenant, left) in list(self._left.items()):
            self.tokens[tenant] += 1
            hold = self.roster.holds[request]
            hold.ids.append(0)
            if left == 1:
                hold.phase = Phase.FINISHED
                del self._left[request]
            else:
                self._left[request] = tenant, left - 1

    def running(self, tenant: str) -> int:
        return sum(of == tenant for of, _ in self._left.values())


def saturated(engine: Engine, steps: int, lengths: dict[str, int] | None = None) -> None:
    """All have jobs waiting all the time."""
    for _ in range(steps):
        for lane in engine.lanes.values():
            engine.put(lane.tenant)
        engine.pull(lengths)
        engine.step()


def test_tokens_are_shared_not_jobs() -> None:
    """One tenant's answers are ten times as long: both get as many tokens all the same."""
    engine = Engine(waiting("long"), waiting("short"))
    saturated(engine, 2500, {"long": 200, "short": 20})

    assert 1.0 == pytest.approx(engine.tokens["long"] / engine.tokens["short"], rel=0.1)


@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_weights(weight: float) -> None:
    """A tenant of three times the weight gets three times the tokens."""
    engine = Engine(waiting("a"), waiting("b", weight=weight))
    saturated(engine, 1500)

    assert weight == pytest.approx(engine.tokens["b"] / engine.tokens["a"], rel=0.1)


def test_a_higher_priority_goes_first() -> None:
    """As long as the higher class has jobs the lower one gets no slot that becomes free."""
    engine = Engine(waiting("low", priority="low"), waiting("high", priority="high"))
    engine.put("low", 50)
    engine.put("high", 20)
    engine.pull()
    for _ in range(500):
        engine.step()
        engine.pull()

    assert {"high"} == set(engine.order[:20])
    assert 50 == engine.order.count("low")


def test_a_flood_does_not_delay_others() -> None:
    """Whoever comes into a flood has the very next slot."""
    engine = Engine(waiting("flood"), *(waiting(f"t{i}") for i in range(5)))
    engine.put("flood", 1000)
    came = []
    for step in range(2000):
        if step % 80 == 40:
            engine.put(f"t{step // 80 % 5}")
            came.append(len(engine.order))
        engine.pull()
        engine.step()

    assert came == [at for at, tenant in enumerate(engine.order) if tenant != "flood"]


def test_a_share_is_kept_free_for_company() -> None:
    """A tenant with a share has all slots while it is alone, and no more than its share after others came."""
    engine = Engine(waiting("flood", share=0.5), waiting("other"))
    engine.put("flood", 1000)
    engine.pull()
    alone = engine.running("flood")
    engine.put("other")
    for _ in range(100):
        engine.pull()
        engine.step()
    engine.pull()
    beside = engine.running("flood")
    engine.now += COMPANY_S
    engine.pull()

    assert (SLOTS, SLOTS // 2, SLOTS) == (alone, beside, engine.running("flood"))


def test_an_empty_lane_is_asked_once() -> None:
    """A bell for jobs that another engine took costs one ask; the next bell is heard again."""
    engine = Engine(waiting("a"))
    engine.turns.bell([waiting("a")])
    plans = [engine.turns.plan(0.0)]
    engine.turns.over("sim-normal-a", SLOTS)
    plans.append(engine.turns.plan(0.0))
    engine.turns.bell([waiting("a")])
    plans.append(engine.turns.plan(0.0))
    engine.turns.bell([waiting("a")])  # while it is being asked
    plans.append(engine.turns.plan(0.0))
    engine.turns.over("sim-normal-a", SLOTS)
    plans.append(engine.turns.plan(0.0))
    whole = {"sim-normal-a": SLOTS}

    assert [whole, {}, whole, {}, whole] == plans


def test_asking_an_empty_lane_earns_nothing() -> None:
    """A tenant that kept a job running, and was asked for more a hundred times, is not ahead for that."""
    engine = Engine(waiting("busy"), waiting("other"))
    engine.put("busy")
    engine.pull({"busy": 10_000})
    for _ in range(100):
        engine.turns.bell([waiting("busy")])
        engine.pull()
    engine.put("busy", 100)
    engine.put("other", 100)
    for _ in range(200):
        engine.pull({"busy": 20, "other": 20})
        engine.step()
    turns = Counter(engine.order[1:41])

    assert abs(turns["busy"] - turns["other"]) <= 4


def test_what_went_away_is_forgotten() -> None:
    """A request that was let go of without an end frees its place in its lane."""
    engine = Engine(waiting("a", share=0.25), waiting("b", share=0.25))
    engine.put("a", 2)
    engine.put("b", 2)
    engine.pull()
    engine.roster.holds.clear()
    engine.put("a", 2)
    engine.put("b", 2)
    engine.pull()

    assert {"a": 4, "b": 4} == Counter(engine.order)


def test_jobs_without_a_key_have_no_turns() -> None:
    """They come by an ask that is always open, and are in nobody's debt."""
    engine = Engine()
    engine.turns.took("sim", "gw-1", 10, 10, 0.0, more=True)

    assert {} == engine.turns.plan(0.0)


def test_no_tenant_is_asked_while_the_engine_takes_nothing() -> None:
    """Room is what the engine says, and not its free slots: it may be short of memory."""
    engine = Engine(waiting("a"))
    engine.room = 0
    engine.put("a", 2)
    assert {} == engine.turns.plan(0.0)

    engine.room = 1
    assert {"sim-normal-a": 1} == engine.turns.plan(0.0)
