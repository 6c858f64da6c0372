"""What is done to a running service, and what its streams may feel of it."""

import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos import cluster, far, kinds, leave, poison, queue, restart, slow, storm
from tests.chaos.disk import full_disk
from tests.chaos.site import Shape
from tests.chaos.trial import Inflict, Outcome, Scene, disturbed

PAUSE_S = 2.5


PLAIN = Shape(env=(("MILLRACE_SIM_POISON_SEED", str(poison.SEED)),))


@dataclass(frozen=True)
class Fault:
    name: str
    trial: Callable[[Scene], Awaitable[Outcome]]
    shape: Shape = PLAIN
    target: str = ""  # milliseconds a stream may stall beyond what is excused
    excuse: str = ""  # what is excused
    simulated: bool = False  # the simulated model's pace, costs or bad jobs are part of it


def _streams(inflict: Inflict) -> Callable[[Scene], Awaitable[Outcome]]:
    return lambda scene: disturbed(scene, inflict)


def _moved(inflict: Inflict) -> Callable[[Scene], Awaitable[Outcome]]:
    """Streams go on at another engine, which has to compute them again."""

    async def trial(scene: Scene) -> Outcome:
        scene.recomputed = True
        return await disturbed(scene, inflict)

    return trial


async def nothing(scene: Scene) -> None:
    """How much this machine itself makes a stream wait."""


# -- kill -9


async def kill_engine(scene: Scene) -> None:
    os.kill((await scene.busy("engine", 4)).pid, signal.SIGKILL)


async def kill_tokenizer(scene: Scene) -> None:
    pid = (await scene.busiest("tokenizer")).pid
    os.kill(pid, signal.SIGKILL)
    await scene.again("tokenizer", pid)
    scene.excused = 0.0  # no stream that runs needs it


async def kill_detokenizer(scene: Scene) -> None:
    pid = (await scene.busy("detokenizer", 4)).pid
    os.kill(pid, signal.SIGKILL)
    if scene.site.shape.detokenizers == 1:
        await scene.again("detokenizer", pid)


async def kill_nats(scene: Scene) -> None:
    os.kill((await scene.busiest("nats")).pid, signal.SIGKILL)
    await scene.nats_again()


async def kill_all(scene: Scene) -> None:
    rows = [row for row in await scene.service.ps() if row.role != "gateway"]
    for row in rows:
        os.kill(row.pid, signal.SIGKILL)
    engine = next(row.pid for row in rows if row.role == "engine")
    await scene.again("engine", engine)


# -- SIGSTOP, then SIGCONT


async def pause_engine(scene: Scene) -> None:
    await scene.pause((await scene.busy("engine", 4)).pid, PAUSE_S)


async def pause_engine_briefly(scene: Scene) -> None:
    """About as long as it takes until the job is given to another."""
    await scene.pause((await scene.busy("engine", 4)).pid, scene.chance.uniform(0.7, 0.95))


async def pause_detokenizer(scene: Scene) -> None:
    await scene.pause((await scene.busy("detokenizer", 4)).pid, PAUSE_S)
    if scene.site.shape.detokenizers == 1:
        scene.excused = PAUSE_S


async def pause_tokenizer(scene: Scene) -> None:
    await scene.pause((await scene.busiest("tokenizer")).pid, PAUSE_S)


async def pause_gateway(scene: Scene) -> None:
    """It owns the streams, so they wait for it; what is late then is not lost."""
    await scene.pause((await scene.busiest("gateway")).pid, PAUSE_S)
    scene.excused = PAUSE_S


async def pause_nats(scene: Scene) -> None:
    await scene.pause((await scene.busiest("nats")).pid, PAUSE_S)
    scene.excused = PAUSE_S


async def pause_nats_for_long(scene: Scene) -> None:
    """Long enough for everybody to give the connection up."""
    await scene.pause((await scene.busiest("nats")).pid, 6.0)
    scene.excused = 6.0
    scene.may_refuse = True  # a new request waits six seconds for NATS, and is told to come again


# -- the network is cut, and nobody is told


def cut(role: str, seconds: float) -> Inflict:
    async def inflict(scene: Scene) -> None:
        await scene.cut((await scene.busy(role, 4)).pid, seconds)

    return inflict


# -- an orderly end


async def drain_engine(scene: Scene) -> None:
    os.kill((await scene.busy("engine", 4)).pid, signal.SIGTERM)


async def drain_detokenizer(scene: Scene) -> None:
    os.kill((await scene.busy("detokenizer", 4)).pid, signal.SIGTERM)


TWO_DETOKENIZERS = Shape(detokenizers=2)
WIRED_ENGINES = Shape(engines=0, wired_engines=2)
WIRED_DETOKENIZERS = Shape(engines=1, detokenizers=0, wired_detokenizers=2)

FAULTS = [
    Fault("nothing", _streams(nothing)),
    Fault("kill engine, 1 of 2", _moved(kill_engine), excuse="re-prefill", target="300"),
    Fault("kill tokenizer", _streams(kill_tokenizer)),
    Fault("kill detokenizer, the only one", _streams(kill_detokenizer), target="700", excuse="its restart"),
    Fault("kill nats-server", _streams(kill_nats), target="1500", excuse="its restart"),
    Fault("kill all but the gateway", _moved(kill_all), excuse="until an engine is ready, and re-prefill"),
    Fault("eight kills and pauses in a row", _streams(storm.storm)),
    Fault("pause engine 2.5 s", _moved(pause_engine), excuse="re-prefill", target="1200"),
    Fault("pause engine 0.7-0.95 s", _streams(pause_engine_briefly), target="1200"),
    Fault("pause tokenizer 2.5 s", _streams(pause_tokenizer)),
    Fault("pause gateway 2.5 s", _streams(pause_gateway), excuse="the pause"),
    Fault("pause nats-server 2.5 s", _streams(pause_nats), target="1500", excuse="the pause"),
    Fault("pause nats-server 6 s", _streams(pause_nats_for_long), target="1500", excuse="the pause"),
    Fault("SIGTERM engine, 1 of 2", _moved(drain_engine), excuse="re-prefill", target="300"),
    Fault("kill detokenizer, 1 of 2", _streams(kill_detokenizer), TWO_DETOKENIZERS, target="700"),
    Fault("pause detokenizer 2.5 s, 1 of 2", _streams(pause_detokenizer), TWO_DETOKENIZERS, target="1200"),
    Fault("SIGTERM detokenizer, 1 of 2", _streams(drain_detokenizer), TWO_DETOKENIZERS),
    Fault(
        "cut off engine 2.5 s", _moved(cut("engine", 2.5)), WIRED_ENGINES, excuse="re-prefill", target="1200"
    ),
    Fault(
        "cut off engine 6 s", _moved(cut("engine", 6.0)), WIRED_ENGINES, excuse="re-prefill", target="1200"
    ),
    Fault("cut off detokenizer 1.2 s", _streams(cut("detokenizer", 1.2)), WIRED_DETOKENIZERS, target="1200"),
    Fault("cut off detokenizer 2.5 s", _streams(cut("detokenizer", 2.5)), WIRED_DETOKENIZERS, target="1200"),
    Fault("cut off engine, engines differ", kinds.cut_off, kinds.SHAPE, simulated=True),
    Fault("clients leave, 1 slot", leave.one_slot, leave.SHAPE, target="step + 50", simulated=True),
    Fault("half of the clients leave", leave.half),
    Fault("clients read 1 byte/s", slow.readers, slow.SHAPE, simulated=True),
    Fault("poison job among innocents", poison.among_innocents, simulated=True),
    Fault("full queue", queue.full, queue.SHAPE, simulated=True),
    Fault("full disk", full_disk, Shape(small_disk=True)),
    Fault("rolling restart of everything", restart.rolling, Shape(detokenizers=2)),
]

IN_A_CLUSTER = [
    Fault("kill the queue's leader", _streams(cluster.kill_leader), cluster.SHAPE, target="1500"),
    Fault("kill another server", _streams(cluster.kill_follower), cluster.SHAPE, target="1500"),
    Fault("pause the queue's leader 2.5 s", _streams(cluster.pause_leader), cluster.SHAPE),
    Fault("pause another server 2.5 s", _streams(cluster.pause_follower), cluster.SHAPE),
    Fault(
        "kill the leader and an engine",
        _streams(cluster.kill_leader_and_engine),
        cluster.SHAPE,
        excuse="until there is a leader",
    ),
]

FAR = [
    fault
    for place, shape, alone in (
        ("leaf node", far.shape("leaf"), far.alone("leaf")),
        ("joined cluster", far.shape("joined"), far.alone("joined")),
    )
    for fault in (
        Fault(f"{place}: kill its engine", _moved(far.kill_engine), shape, excuse="re-prefill"),
        Fault(f"{place}: kill its nats-server", _moved(far.kill_server), shape, excuse="re-prefill"),
        Fault(f"{place}: cut off 1.5 s", _moved(far.cut_1_5), shape, excuse="re-prefill"),
        Fault(f"{place}: cut off 6 s", _moved(far.cut_6), shape, excuse="re-prefill"),
        Fault(
            f"{place}: cut off 2.5 s with the only engine",
            _streams(far.cut_with_the_only_engine),
            alone,
            excuse="the cut",
        ),
    )
]
