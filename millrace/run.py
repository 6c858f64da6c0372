"""One process's life: connect, start, pump, drain, stop."""

import asyncio
import gc
import importlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop

from millrace import alive, cuda, exposed, keys, logs, metrics, scrape, settings, tls
from millrace.actor import Actor
from millrace.bus import Bus, Inbox
from millrace.messages import Here
from millrace.met import Met
from millrace.pace import in_step
from millrace.resources import resources
from millrace.subjects import PRESENCE, SAFE, Role
from millrace.telemetry import Context

HERE_S = 0.5
DRAIN_S = 60.0
"""No drain takes longer; a gateway's own limit for its streams is shorter."""

NO_THREAD = ("can't start new thread", "pthread_create failed", "ThreadPoolBuildError")
"""The words of Python, of ONNX Runtime and of the tokenizers' library where they cannot start one."""

log = logging.getLogger("millrace.run")


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


Build = Callable[[Bus, Any, str], Awaitable[Actor]]


def main(role: Role, given: settings.Process) -> int:
    """Run one role until it is told to stop; the exit status."""
    id = given.id or f"{role}_{secrets.token_hex(4)}"
    if not SAFE.fullmatch(id):
        raise settings.SettingError(f"id: {id!r} is not made of a-z, 0-9 and _")
    level = logs.level(given)
    # What is missing is said before NATS is waited for.
    if isinstance(given, settings.Engine):
        cuda.available(given.device, given.sysroot)
    if isinstance(given, settings.Gateway):
        keys.read(given.keys)
    logs.set_up(level, role, id, given.log_format)
    try:
        return uvloop.run(_live(role, given, id))
    except BaseException as error:
        if not any(words in str(error) for words in NO_THREAD):
            raise
        raise settings.SettingError(
            "no more threads can be started: raise the limit of this cgroup (pids.max) or user (`ulimit -u`)"
        ) from error


def _builder(role: Role) -> Build:
    """A process imports its own role only: a detokenizer starts without the web server."""
    build: Build = importlib.import_module(f"services.{role}.actor").build
    return build


def _nats(given: settings.Process) -> str:
    url = given.nats
    if given.nats_file:
        try:
            url = Path(given.nats_file).read_text().strip()
        except OSError as error:
            raise settings.SettingError(f"nats_file: {error}") from None
    parts = urlsplit(url)
    if parts.scheme not in ("nats", "tls") or not parts.hostname:  # it may have a password: not to be shown
        source = given.nats_file or "nats"
        raise settings.SettingError(f"{source}: not an address like nats://{Role.ENGINE}:PASSWORD@HOST:4222")
    return url


async def _live(role: Role, given: settings.Process, id: str) -> int:
    stopping = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, stopping.set)
    connecting = asyncio.ensure_future(Bus.connect(_nats(given), role, id, tls.context(given)))
    build = _builder(role)  # its imports take a while, and so may NATS
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not connecting.done():
        connecting.cancel()
        await asyncio.wait({connecting})
        return 0
    bus = await connecting

    state = State.STARTING
    try:
        actor = await build(bus, given, id)
    except ValueError as error:
        # A model or a setting that it cannot work with: it would be the same at the next start.
        raise settings.SettingError(str(error)) from error
    except PermissionError as error:  # of a model's files
        raise settings.SettingError(f"{error.filename}: {error.strerror}") from error

    def measured() -> Here:
        here = actor.here(state, os.getpid())
        return msgspec.structs.replace(here, gauges={**here.gauges, **resources()})

    def tell() -> None:
        bus.publish(PRESENCE.to(role), measured())
        if given.alive:
            alive.tell(Path(given.alive), state)

    async def tell_on() -> None:
        while True:
            tell()
            await asyncio.sleep(in_step(HERE_S, time.monotonic()))

    async def again() -> None:
        tell()
        await actor.reconnected()

    gateways = Met()

    def greet(here: Here, context: Context) -> None:
        """A gateway that has just come knows nobody: it shall not have to wait."""
        if gateways.first(here.id, time.monotonic()):
            tell()

    bus.on_up = again
    await actor.start()
    scraped = None
    if given.metrics_at:
        scraped = await scrape.serve(given.metrics_at, lambda: metrics.text(exposed.families([measured()])))
    # To look through a gateway's thousand streams for cycles takes 0.1 s, in which nothing is sent; with
    # Python's own thresholds the objects of one delta are enough for a round, and that was every 5 s. What
    # start-up made stays for ever, and is not looked at again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 4)
    state = State.READY
    if role is not Role.GATEWAY:
        await bus.listen(Inbox(PRESENCE.to(Role.GATEWAY), Here, greet))
    telling = asyncio.create_task(tell_on())
    log.info("ready")
    await asyncio.wait((stopped, actor.broken), return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if actor.broken.done():
        log.critical("ended by a defect", exc_info=actor.broken.result())
        status = 1
    else:
        state = State.DRAINING
        tell()
        log.info("draining")
        try:
            await asyncio.wait_for(actor.drain(), DRAIN_S)
        except TimeoutError:
            log.warning("did not drain within %g s", DRAIN_S)
    telling.cancel()
    if scraped:
        scraped.close()
    await actor.stop()
    await bus.close()
    if not status:  # else what it died of is the last that it says
        log.info("stopped")
    return status
