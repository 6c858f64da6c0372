"""`millrace up`: starts nats-server and the processes of every role, and keeps them running.

Each process has a *seat*. A process that dies is followed by another in its seat; one that is replaced or
scaled away drains and takes its seat with it. Order matters only at the end: gateways leave first, as they
own the streams, and nats-server last.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from millrace import messages, settings
from millrace.pace import in_step
from millrace.settings import MOST
from millrace.subjects import PRESENCE, Role
from millrace.telemetry import Context
from millrace.up import control, home, panel, place
from millrace.up.child import Child, ending
from millrace.up.company import Company
from millrace.up.control import ControlError, Row, Say
from millrace.up.launch import Launch
from millrace.up.place import CannotStart
from millrace.up.seat import NATS, SILENT_S, Seat, backoff
from millrace.up.welcome import Welcome

INNER = (Role.TOKENIZER, Role.ENGINE, Role.DETOKENIZER)
SCALED = (Role.GATEWAY, *INNER)
ORDER = (NATS, *SCALED)
PASSING = (NATS, Role.DETOKENIZER, Role.GATEWAY)
"""A token goes through these, one after the other."""

STEADY_S = 3.0
"""A process that was ready this long ran well: its death is not one of a series."""

TICK_S = 0.25
TRIES = 3
"""So often may a replacement die before it was ever ready, until a restart or a scaling is given up."""

PATIENCE_S = 15.0
"""Inner processes hand over what they hold; nats-server closes its files. A gateway has its own limit."""

QUIET_S = 1.5
"""Where nobody is heard for so long, nats-server is asked itself. `Here` comes every half second."""

WARNINGS = 5
"""Lines a tick that one process may put before the user; its log has them all."""

STUCK = "critical write error"
"""nats-server's words when its store could not write. It refuses to store from then on, even when the disk
has room again, until it is started anew: which streams do not notice."""

MEET_S = 2.0
"""For the gateways to hear of everybody. Where somebody is missing, as with `--engines 0`, none ever will."""

FORMER = 64
"""Of so many processes that ended the ids are kept: what one said last may be heard after its end."""

ROOM = 4 << 20
"""Bytes free, from which on a restart is worth it."""

log = logging.getLogger("millrace.up")


def ends() -> set[signal.Signals]:
    """The signals that end a service. Whom nohup started outlives its terminal."""
    hang_up = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else set()
    return {signal.SIGINT, signal.SIGTERM} | hang_up


class Supervisor:
    def __init__(
        self,
        given: settings.Up,
        drain_s: float,
        folder: Path,
        lock: int,
        http: socket.socket,
        view: panel.View,
        tls: ssl.SSLContext | None,
        welcome: Welcome,
        launch: Launch,
    ):
        self._given = given
        self._drain_s = drain_s
        self._folder = folder
        self._lock = lock  # of the folder
        self._http = http
        self._view = view
        self._tls = tls
        self._launch = launch
        self._broker = launch.broker
        self._seats: list[Seat] = []
        self._guests: dict[str, tuple[messages.Here, float]] = {}  # those who joined by hand
        self._former: deque[str] = deque(maxlen=FORMER)
        self._children: set[Child] = set()
        self._one_order = asyncio.Lock()
        self._stuck = False  # nats-server cannot store
        self._stopping = asyncio.Event()
        self._defect: BaseException | None = None
        self._welcome = welcome
        self._company = Company() if given.share_processor else Company(())

    # -- its life

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for sig in ends():
            loop.add_signal_handler(sig, self._stop)
        begun = [self._add(NATS)] if self._broker else []
        for role in SCALED:
            begun += [self._add(role) for _ in range(getattr(self._given, f"{role}s"))]
        watching = [self._spawn(self._tick_on()), self._spawn(self._hear_on())]
        stopped = asyncio.create_task(self._stopping.wait())
        starting = asyncio.gather(*(seat.first_ready for seat in begun))
        first: set[asyncio.Future[Any]] = {starting, stopped}
        failure: BaseException | None = None
        try:
            async with control.serve(self._folder, self) as again:
                keeping = self._spawn(
                    home.keep(self._folder, self._lock, self._launch.restore, again, self._event)
                )
                watching.append(keeping)
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                if starting.done() and not (failure := starting.exception()):
                    answering = self._spawn(self._answers())
                    await asyncio.wait(
                        {stopped, answering}, timeout=MEET_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    answering.cancel()
                    self._show()
                    self._view.ready(self._welcome)
                    log.info("ready: %s", self.url)
                    await stopped
                await self._drain()
                keeping.cancel()
        finally:
            self._kill()
            left: list[asyncio.Future[Any]] = [starting, stopped, *watching]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, *(seat.task for seat in self._seats), return_exceptions=True)
            if self._broker:
                self._broker.close()
            self._http.close()
            self._show()
        if failure := self._defect or failure:
            raise failure

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose defect ends the service: it must not go on half watched."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect = self._defect or error
            self._stopping.set()

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._event("ending everything now")
            self._kill()
        self._stopping.set()

    def _kill(self) -> None:
        for seat in self._seats:
            seat.leaving.set()
        for child in self._children:
            child.signal(signal.SIGKILL)

    def _reap(self) -> None:
        for child in tuple(self._children):
            child.reap()

    async def _drain(self) -> None:
        self._stopping.set()
        self._event(f"stopping: streams may go on for {self._drain_s:g} s, a second Ctrl-C ends them now")
        # From here on a new connection is refused at once, instead of waiting for nobody.
        self._http.close()
        # The inner processes are kept running, and started again if they die, until no stream needs them.
        for roles in ((Role.GATEWAY,), INNER, (NATS,)):
            await asyncio.gather(*(self._retire(seat) for seat in self._seats if seat.role in roles))
        self._event("stopped")

    # -- seats

    def _add(self, role: str, tries: int | None = None, restarts: int = 0) -> Seat:
        taken = {seat.number for seat in self._seats if seat.role == role}
        number = next(n for n in range(1, len(taken) + 2) if n not in taken)
        seat = Seat(role, number, tries, restarts)
        self._seats.append(seat)
        self._seats.sort(key=lambda seat: (ORDER.index(seat.role), seat.number))
        seat.task = self._spawn(self._keep(seat))
        return seat

    async def _retire(self, seat: Seat) -> None:
        seat.leaving.set()
        if seat.child and seat.child.alive:
            seat.state = "draining"
            # The gateway has its own limit, and is to keep it; this one is for a gateway that hangs.
            await seat.child.stop(self._drain_s + 5.0 if seat.role == Role.GATEWAY else PATIENCE_S)
        await asyncio.wait({seat.task})

    async def _keep(self, seat: Seat) -> None:
        """Have a process in this seat until it leaves."""
        deaths = 0
        try:
            while not seat.leaving.is_set():
                status, last = await self._one_life(seat)
                if seat.leaving.is_set():
                    break
                if seat.replacing:
                    seat.replacing, deaths = False, 0
                    continue
                steady = seat.ready_at and time.monotonic() - seat.ready_at >= STEADY_S
                deaths = 1 if steady else deaths + 1
                why = f"{ending(status)}: {last}" if last and status >= 0 else ending(status)
                # Status 2 is a setting that does not fit: it will not fit the next time either.
                hopeless = status == 2 or (seat.tries is not None and deaths >= seat.tries)
                if hopeless and not seat.first_ready.done():
                    self._event(f"{seat.name} died ({why})")
                    text = last.removeprefix("millrace: ") or ending(status)
                    seat.first_ready.set_exception(CannotStart(f"the {seat.role} does not start: {text}"))
                    break
                seat.restarts += 1
                pause = backoff(deaths)
                then = (
                    f"again in {pause:g} s (log: {self._launch.log(seat)})" if pause else "starting another"
                )
                self._event(f"{seat.name} died ({why}), {then}")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(seat.leaving.wait(), pause)
        finally:
            self._seats.remove(seat)
            if not seat.first_ready.done():
                seat.first_ready.cancel()

    async def _one_life(self, seat: Seat) -> tuple[int, str]:
        """Start a process in this seat and see it to its end: its status and its last words."""
        seat.ready_at = 0.0
        try:
            child = self._launch.start(seat, self._seats)
        except OSError as error:
            seat.end()
            return 1, str(error)
        self._children.add(child)
        child.reap()  # it may have ended before it was in the set
        greeting = self._spawn(self._greeted(seat)) if seat.role == NATS else None
        try:
            return await child.wait(), child.last_line
        finally:
            self._children.discard(child)
            self._pass_on(seat)
            self._former.append(seat.id)
            seat.end()
            if greeting:
                greeting.cancel()

    # -- what it sees

    async def _greeted(self, seat: Seat) -> None:
        assert self._broker
        await self._broker.ready()
        self._hears_again()
        self._now(seat, "ready")
        while True:
            await asyncio.sleep(in_step(TICK_S, time.monotonic()))
            if time.monotonic() - seat.heard < QUIET_S:
                continue
            if await self._broker.answers():
                self._nats_speaks(seat)
            elif not seat.mute:
                seat.mute = True
                self._event("nats does not answer")

    def _nats_speaks(self, seat: Seat) -> None:
        if seat.mute:
            seat.mute = False
            self._event("nats answers again")
            self._hears_again()
        seat.heard = time.monotonic()

    def _hears_again(self) -> None:
        """While the server was away nobody could be heard, and that was nobody's fault."""
        for seat in self._seats:
            seat.heard = time.monotonic()

    async def _answers(self) -> None:
        """Ends when the service says itself that it is ready: a gateway may hear of the others after us."""
        host, port = self._http.getsockname()[:2]
        ask = b"GET /readyz HTTP/1.1\r\nhost: millrace\r\nconnection: close\r\n\r\n"
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(place.reached(host), port)
                try:
                    writer.write(ask)
                    if b" 200 " in await reader.readline():
                        return
                finally:
                    writer.close()
            await asyncio.sleep(0.01)

    async def _hear_on(self) -> None:
        # Imported only now: the processes that it starts are busy importing too.
        from millrace.bus import Bus, Inbox  # noqa: PLC0415

        bus = await Bus.connect(self._launch.nats.url(Role.OPERATOR), Role.OPERATOR, "up", self._tls)
        try:
            await bus.listen(Inbox(PRESENCE.wildcard, messages.Here, self._heard))
            await asyncio.Event().wait()
        finally:
            await bus.close()

    def _heard(self, here: messages.Here, _: Context) -> None:
        now = time.monotonic()
        for seat in self._seats:
            if seat.role == NATS:
                self._nats_speaks(seat)
        for seat in self._seats:
            if seat.id == here.id:
                seat.here, seat.heard = here, now
                if not seat.leaving.is_set() and not seat.replacing:
                    self._now(seat, here.state)
                return
        if here.id in self._former:
            return
        if here.id not in self._guests:
            self._event(f"{here.role} {here.id} joined from outside")
        self._guests[here.id] = (here, now)

    def _now(self, seat: Seat, state: str) -> None:
        if state == seat.state:
            return
        seat.state = state
        if state != "ready":
            return
        self._event(f"{seat.name} ready")
        seat.ready_at = time.monotonic()
        seat.ready.set()
        if not seat.first_ready.done():
            seat.first_ready.set_result(None)

    async def _tick_on(self) -> None:
        while True:
            now = time.monotonic()
            for id, (here, heard) in tuple(self._guests.items()):
                if now - heard > SILENT_S:
                    del self._guests[id]
                    self._event(f"{here.role} {id} left")
            passing = [seat.child for seat in self._seats if seat.role in PASSING and seat.child]
            self._company.look([child.pid for child in passing if child.alive], now)
            for seat in self._seats:
                self._pass_on(seat)
                if self._broker and seat.role == NATS and self._stuck and self._broker.room >= ROOM:
                    self._stuck = False
                    self._spawn(self._unstick(seat))
            self._show()
            await asyncio.sleep(in_step(TICK_S, time.monotonic()))

    def _pass_on(self, seat: Seat) -> None:
        """What a process warns of, its user sees."""
        lines = seat.child.warnings() if seat.child else []
        self._stuck = self._stuck or (seat.role == NATS and any(STUCK in line for line in lines))
        for line in lines[:WARNINGS]:
            self._view.event(f"{seat.name}: {line.replace(f' {seat.id} ', ' ')}")
        if len(lines) > WARNINGS:
            self._view.event(f"{seat.name}: {len(lines) - WARNINGS} more in {self._launch.log(seat)}")

    def _event(self, text: str) -> None:
        log.info(text)
        self._view.event(text)

    def _show(self) -> None:
        self._view.show(self.rows())

    # -- what it is told

    @property
    def url(self) -> str:
        return self._welcome.url

    def rows(self) -> list[Row]:
        up = all(seat.ready.is_set() and not seat.mute for seat in self._seats if seat.role == NATS)
        now = time.monotonic() if up else None
        guests = [
            Row(here.role, here.pid, here.id, here.state, here.load, here.room, 0, here.model, here.pressure)
            for here, _ in self._guests.values()
        ]
        return [*(seat.row(now) for seat in self._seats), *guests]

    async def scale(self, role: str, count: int, say: Say) -> None:
        if role not in SCALED:
            raise ControlError(f"cannot scale {role!r}: it is one of {', '.join(SCALED)}")
        if not 0 <= count <= MOST:
            raise ControlError(f"{role}={count}: from 0 to {MOST} can be run here")
        await self._obey(self._scale(role, count, say), say)

    async def restart(self, role: str, say: Say) -> None:
        if role and role not in ORDER:
            raise ControlError(f"cannot restart {role!r}: it is one of {', '.join(ORDER)}")
        await self._obey(self._restart((role,) if role else ORDER, say), say)

    async def _obey(self, work: Coroutine[Any, Any, None], say: Say) -> None:
        """One order after another, and none once the service is being stopped."""

        async def in_turn() -> None:
            if self._one_order.locked():
                say("another order is being carried out: this one waits for its turn")
            async with self._one_order:
                await work

        task = asyncio.create_task(in_turn())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ControlError("the service is being stopped")
            task.result()
        except CannotStart as error:
            raise ControlError(str(error)) from None
        finally:
            task.cancel()
            stopped.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)
            work.close()

    async def _scale(self, role: str, count: int, say: Say) -> None:
        seats = [seat for seat in self._seats if seat.role == role]
        new = [self._add(role, TRIES) for _ in range(count - len(seats))]
        await asyncio.gather(*(self._comes(seat, say) for seat in new))
        await asyncio.gather(*(self._goes(seat, say) for seat in seats[count:]))

    async def _restart(self, roles: Sequence[str], say: Say) -> None:
        for role in roles:
            for seat in [seat for seat in self._seats if seat.role == role]:
                if role == NATS:
                    say("nats: stopping and starting")
                    await self._replace(seat)
                    say("nats: ready")
                else:
                    await self._comes(self._add(role, TRIES, seat.restarts), say)
                    await self._goes(seat, say)

    async def _replace(self, seat: Seat) -> None:
        """The same seat, a new process: for nats-server, of which there can be only one."""
        if seat.child and seat.child.alive:
            seat.replacing = True
            seat.ready.clear()
            await seat.child.stop(PATIENCE_S)
        await seat.ready.wait()

    async def _unstick(self, seat: Seat) -> None:
        assert self._broker
        why = "has room again" if self._broker.store.exists() else "was removed"
        self._event(f"the job store {why}: restarting nats")
        async with self._one_order:
            await self._replace(seat)

    async def _comes(self, seat: Seat, say: Say) -> None:
        say(f"{seat.role}: starting one more")
        try:
            await asyncio.shield(seat.first_ready)
        except asyncio.CancelledError:
            seat.leaving.set()
            raise
        say(f"{seat.name}: ready")

    async def _goes(self, seat: Seat, say: Say) -> None:
        say(f"{seat.name}: draining")
        self._event(f"{seat.name} draining")
        await self._retire(seat)
        say(f"{seat.name}: stopped")
        self._event(f"{seat.name} stopped")
