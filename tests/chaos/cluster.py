"""A cluster of three nats-servers loses one, and its streams' leader with it.

While the others choose a new leader, jobs are neither stored nor pulled: new requests wait, or are told to
come again. Tokens do not pass through a leader, so what runs goes on.
"""

import asyncio
import os
import signal

from tests.chaos.site import Shape
from tests.chaos.trial import Scene
from tests.kit.cluster import Cluster

SHAPE = Shape(cluster=True)
PAUSE_S = 2.5
DOWN_S = 1.0


async def _node(scene: Scene, *, leader: bool) -> tuple[Cluster, str]:
    cluster = scene.site.cluster
    assert cluster
    scene.may_refuse = True
    head = await cluster.leader()
    return cluster, head if leader else scene.chance.choice([h for h in cluster.hosts if h != head])


async def _killed(scene: Scene, *, leader: bool) -> None:
    cluster, host = await _node(scene, leader=leader)
    cluster.kill(host)
    await asyncio.sleep(DOWN_S)
    cluster.start(host)
    await cluster.whole()


async def _paused(scene: Scene, *, leader: bool) -> None:
    cluster, host = await _node(scene, leader=leader)
    await scene.pause(cluster.pid(host), PAUSE_S)
    await cluster.whole()


async def kill_leader(scene: Scene) -> None:
    await _killed(scene, leader=True)


async def kill_follower(scene: Scene) -> None:
    await _killed(scene, leader=False)


async def pause_leader(scene: Scene) -> None:
    await _paused(scene, leader=True)


async def pause_follower(scene: Scene) -> None:
    await _paused(scene, leader=False)


async def kill_leader_and_engine(scene: Scene) -> None:
    """The engine's jobs have to wait for the next leader; that is what a cluster costs, and it is excused."""
    pid = (await scene.busy("engine", 4)).pid
    cluster, host = await _node(scene, leader=True)
    cluster.kill(host)
    os.kill(pid, signal.SIGKILL)
    cluster.start(host)
    began = asyncio.get_running_loop().time()
    await cluster.leader()
    scene.excused = asyncio.get_running_loop().time() - began
    await cluster.whole()
