"""The command `millrace up`: what it is given is tried, what it has alone is taken, then it supervises."""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec

from millrace import cuda, keys, logs, models, possible, settings, tls
from millrace.subjects import Role
from millrace.up import control, panel
from millrace.up.broker import binary
from millrace.up.child import LOG_LIMIT
from millrace.up.launch import Launch
from millrace.up.place import CannotStart, claim, listen, public_url
from millrace.up.supervise import SCALED, Supervisor
from millrace.up.welcome import Welcome, program


def up(given: settings.Up, passed: Mapping[str, Any]) -> int:
    """Run a service until it is told to stop. `passed` are settings for the processes it starts."""
    began = time.monotonic()
    for role in SCALED:
        logs.level(_checked(role, passed))
    model = models.find(given.model, given.models)
    if Path(given.model).resolve() == model.folder:  # found there from anywhere, whatever becomes of here
        given = msgspec.structs.replace(given, model=str(Path(given.model).absolute()))
    front, engine = _checked(Role.GATEWAY, passed), _checked(Role.ENGINE, passed)
    keys.read(front.keys)
    settings.origins(front.origins)
    possible.large_pages(model, engine)
    gpus = _gpus(engine)
    try:
        if not given.broker:
            binary()
    except FileNotFoundError as error:
        raise CannotStart(str(error)) from None
    with contextlib.ExitStack() as held:
        early = held.enter_context(listen(given.host, 0)) if given.port == 0 else None
        if early:  # the system chose a port, and the state directory is named after it
            given = msgspec.structs.replace(given, port=early.getsockname()[1])
        folder = control.state_dir(given)
        lock = claim(folder)
        held.callback(os.close, lock)
        if control.answers(folder):
            raise CannotStart(
                f"{folder} is in use by another `millrace up`, whose lock somebody has removed; "
                "choose another --port or --state-dir"
            )
        http = early or held.enter_context(listen(given.host, given.port))
        try:
            (folder / "log").mkdir(mode=0o700, exist_ok=True)
            up_log = RotatingFileHandler(folder / "log" / "up.log", maxBytes=LOG_LIMIT, backupCount=1)
            logging.basicConfig(
                handlers=[up_log], level="INFO", format="%(asctime)s %(levelname)s %(message)s"
            )
            launch = Launch(given, _environment(passed), folder, http, gpus)
        except OSError as error:
            raise CannotStart(f"cannot keep state in {folder}: {error.strerror}") from None
        view = panel.choose(sys.stdout, plain=given.plain, model=model.name, folder=folder, began=began)
        held.callback(view.close)
        trusted = tls.context(engine)
        url = public_url(given.host, http.getsockname()[1])
        called, keyed = program(sys.argv[0]), bool(front.keys)
        welcome = Welcome(url, model.name, called, keyed=keyed, vectors=bool(model.vectors))
        service = Supervisor(given, front.drain_s, folder, lock, http, view, trusted, welcome, launch)
        asyncio.run(service.run())
    return 0


def _gpus(engine: settings.Engine) -> int:
    """Those that engines are spread over; none where one is named, or the processor."""
    devices = cuda.available(engine.device, engine.sysroot)
    return len(devices) if engine.device == "cuda" else 0


def _checked(role: Role, passed: Mapping[str, Any]) -> Any:
    """The settings this role's processes will find: a wrong one is told now, and once."""
    struct = settings.ROLES[role]
    return settings.load(struct, {k: v for k, v in passed.items() if k in struct.__struct_fields__})


def _environment(passed: Mapping[str, Any]) -> dict[str, str]:
    # What is about one process is chosen for each; an old NATS address would be nobody's here.
    own = {f"MILLRACE_{name}" for name in ("NATS", "ID", "FD", "METRICS_AT")}
    env = {k: v for k, v in os.environ.items() if k not in own}
    env |= {f"MILLRACE_{key.upper()}": str(value) for key, value in passed.items()}
    # What is started later must not run without what the file said, keys say, because file or folder is gone.
    if settings.CONFIG in env or Path(settings.FILE).exists():
        env[settings.CONFIG] = str(Path(env.get(settings.CONFIG, settings.FILE)).absolute())
    root = Path(__file__).parents[2]
    if root.name not in ("site-packages", "dist-packages"):  # run from a checkout
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), env.get("PYTHONPATH", "")]))
    return env
