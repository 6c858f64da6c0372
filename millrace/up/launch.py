"""What each process of a service is started with: its command, its settings, its socket, its log."""

import os
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from millrace import cuda, settings, tracefile
from millrace.provision import Elsewhere
from millrace.subjects import Role
from millrace.up.broker import Broker
from millrace.up.child import Child
from millrace.up.seat import NATS, Seat

NATS_SLACK_NS = 1_000_000
"""Go looks at its own threads every 20 us while it does anything. With 1 ms a message costs a fifth less."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Launch:
    def __init__(
        self, given: settings.Up, env: Mapping[str, str], folder: Path, http: socket.socket, gpus: int = 0
    ):
        """`gpus`: that engines are spread over."""
        self._given = given
        self._env = env
        self._folder = folder
        self._http = http
        self._gpus = gpus
        self.broker = None if given.broker else Broker.prepare(folder / "nats")
        self.nats = self.broker or Elsewhere(Path(given.broker))

    def start(self, seat: Seat, seats: Iterable[Seat]) -> Child:
        """A process for this seat; `seats` are all. Raises OSError."""
        self.restore()
        if seat.role == NATS:
            # Two messages a step are little work, and on few cores Go's own threads cost more than they give.
            env = self._env if (os.cpu_count() or 1) > 4 else {"GOMAXPROCS": "1", **self._env}
            assert self.broker
            child = Child(self.broker.command(), env, self.log(seat), slack_ns=NATS_SLACK_NS)
            seat.begin(NATS, child)
            return child
        role = Role(seat.role)
        id = f"{role}_{secrets.token_hex(3)}"
        env = {**self._env, "MILLRACE_NATS": self.nats.url(role), "MILLRACE_ID": id}
        if "model" in settings.ROLES[role].__struct_fields__:
            env |= {"MILLRACE_MODEL": self._given.model, "MILLRACE_MODELS": self._given.models}
        fds: tuple[int, ...] = ()
        if role is Role.ENGINE:
            env.setdefault("MILLRACE_PREFIX_DIR", str(self._folder / "prefixes"))
            env |= self.engines(seat, seats)
        if role is Role.GATEWAY:
            fds = (self._http.fileno(),)
            env["MILLRACE_FD"] = str(fds[0])
            env["MILLRACE_HOST"] = self._given.host
            env["MILLRACE_PORT"] = str(self._given.port)
            if self._given.host in LOOPBACK:
                env.setdefault("MILLRACE_KILL_BUTTON", "true")
            env["MILLRACE_TRACE_FILE"] = str(self._folder / tracefile.FOLDER / f"{self._name(seat)}.jsonl")
        # -P: a file in the user's directory is not a module of ours, whatever its name.
        # -u: what a library prints stands in the log before the words the process died of, not after them.
        child = Child([sys.executable, "-P", "-u", "-m", "millrace", role], env, self.log(seat), fds)
        seat.begin(id, child)
        return child

    def restore(self) -> None:
        """Make again what somebody has removed of the folder, with the passwords of those who run. Raises
        OSError."""
        for folder in (self._folder, self._folder / "log"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.broker and not self.broker.config.exists():
            self.broker.write()

    def engines(self, seat: Seat, seats: Iterable[Seat]) -> dict[str, str]:
        """How many share what this engine's memory is of; and which device is its, where none is named."""
        engines = [other for other in seats if other.role == Role.ENGINE]
        if not self._gpus:
            return {"MILLRACE_ENGINES": str(len(engines))}
        taken = [other.gpu for other in engines if other is not seat and other.gpu is not None]
        seat.gpu = cuda.least(self._gpus, taken)
        each = -(-len(engines) // self._gpus)
        return {"MILLRACE_DEVICE": f"cuda:{seat.gpu}", "MILLRACE_ENGINES": str(each)}

    def log(self, seat: Seat) -> Path:
        if seat.role == NATS and self.broker:
            return self.broker.log
        return self._folder / "log" / f"{self._name(seat)}.log"

    @staticmethod
    def _name(seat: Seat) -> str:
        """Of its files, whoever sits in it."""
        return seat.role if seat.number == 1 else f"{seat.role}_{seat.number}"
