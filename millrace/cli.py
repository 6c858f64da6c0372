"""The `millrace` command: what each of its commands begins with."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from millrace import __version__, settings
from millrace.command import completion, flags, model_command, standard, talk
from millrace.settings import ROLES, SettingError

if TYPE_CHECKING:
    from millrace.command.client import Client


def main(argv: Sequence[str] | None = None) -> int:
    standard.prepare()
    try:
        args = vars(flags.parser().parse_args(argv))
        status = _run(args.pop("command"), args)
        sys.stdout.flush()
    except SettingError as error:
        print(f"millrace: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        standard.mute()  # whoever reads has seen enough
        return 0
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        print(f"millrace: {about}{error.strerror or error}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it was the output
            standard.mute()
        return 1
    return status


def _run(command: str, args: dict[str, Any]) -> int:
    if command == "version":
        print(__version__)
        return 0
    if command == "up":
        return _up(args)
    if command == "key":
        return _key(args["tenant"], args["operator"])
    if command == "trace":
        return _trace(args)
    if command == "doctor":
        return _doctor(args)
    if command == "completion":
        print(completion.script(flags.parser(), args["shell"]), end="")
        return 0
    if command == "top":
        from millrace.command import top

        return _asking(lambda client: top.run(client, sys.stdout, once=args["once"]), args)
    if command in ("chat", "complete"):
        return _asking(lambda client: talk.run(command, client, args), args)
    if command == "model":
        return model_command.run(args)
    if command == "broker":
        return _broker(**args)
    if command == "healthy":
        return _healthy(**args)
    if command in ROLES:
        from millrace import run
        from millrace.subjects import Role

        struct: type[Any] = ROLES[command]
        return run.main(Role(command), settings.load(struct, args))
    return _order(command, args)


def _up(args: dict[str, Any]) -> int:
    from millrace.up import place, up

    own = {key: value for key, value in args.items() if key in settings.Up.__struct_fields__}
    passed = {key: value for key, value in args.items() if key not in own and value is not None}
    try:
        return up.up(settings.load(settings.Up, own), passed)
    except place.CannotStart as error:
        print(f"millrace: {error}", file=sys.stderr)
        return 1


def _key(tenant: str, operator: str) -> int:
    from millrace import keys

    key, line = keys.new(tenant or operator)
    print(f"The key, which is shown this once:\n\n    {key}\n")
    print(f"The line for the key file, below [{'keys' if tenant else 'operators'}]:\n\n    {line}")
    return 0


def _broker(folder: Path, nats: str, store: str, tls: str, join: list[str], leaf: list[str]) -> int:
    from millrace import nats_conf, provision

    files = nats_conf.Tls(*(f"{tls}/{name}.pem" for name in ("ca", "cert", "key"))) if tls else None
    clusters = {name: servers.split(",") for name, servers in _named("join", join)}
    try:
        provision.provision(
            folder, nats.split(","), store, files, joined=clusters, leaves=dict(_named("leaf", leaf))
        )
    except (OSError, ValueError) as error:
        print(f"millrace: {error}", file=sys.stderr)
        return 1
    return 0


def _named(flag: str, given: list[str]) -> list[tuple[str, str]]:
    """Pairs of a name and what stands for it."""
    pairs = [each.partition("=") for each in given]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise SettingError(f"--{flag}: {name + equals + value!r} is not like name=nats:4222")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise SettingError(f"--{flag}: a name is there twice")
    return [(name, value) for name, _, value in pairs]


def _healthy(file: Path | None, live: bool) -> int:
    from millrace import alive

    path = file or os.environ.get("MILLRACE_ALIVE")
    if not path:
        raise SettingError("healthy: name a file, or set MILLRACE_ALIVE")
    ailment = alive.ailment(Path(path), live=live)
    print(ailment or "well")
    return 1 if ailment else 0


def _trace(args: dict[str, Any]) -> int:
    import shutil

    from millrace import paint, tracefile
    from millrace.command import waterfall
    from millrace.up import control

    name, slow = args.pop("request"), args.pop("slow")
    args.pop("last")
    try:
        folder = _folder(args)
    except control.ControlError as error:
        kept = sorted(control.default_root().glob(f"*/{tracefile.FOLDER}"), key=lambda f: f.stat().st_mtime)
        if not kept:
            print(f"millrace: {error}", file=sys.stderr)
            return 1
        folder = kept[-1].parent
    traces = [trace for line in tracefile.read(folder) if (trace := waterfall.parsed(line))]
    if name:
        found = waterfall.named(traces, name)
    else:
        found = waterfall.slowest(traces) if slow else waterfall.last(traces)
    if found is None:
        what = f"no trace of {name!r}" if name else "no trace yet"
        print(f"millrace: {what} in {folder / tracefile.FOLDER}", file=sys.stderr)
        return 1
    columns = shutil.get_terminal_size((140, 24)).columns
    print("\n".join(waterfall.drawn(found, traces, columns=columns, colour=paint.wanted(sys.stdout))))
    return 0


def _order(command: str, args: dict[str, Any]) -> int:
    from millrace.up import control

    as_json = args.pop("json", False)
    what: control.Order
    if command == "ps":
        what = control.Ps()
    elif command == "scale":
        role, _, count = args.pop("size").partition("=")
        if not count.isascii() or not count.isdigit():
            raise SettingError("scale takes <role>=<number>, like engine=3")
        what = control.Scale(role, int(count))
    else:
        what = control.Restart(args.pop("role") or "")

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        done = control.order(_folder(args), what, say)
    except control.ControlError as error:
        print(f"millrace: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(msgspec.to_builtins(done.rows), indent=2))
    elif command == "ps":
        print(control.table(done.rows))
    return 0


def _doctor(args: dict[str, Any]) -> int:
    from millrace.command import doctor

    as_json = args.pop("json")
    up, engine = settings.load(settings.Up, args), settings.load(settings.Engine, args)
    gateway = settings.load(settings.Gateway, {})
    return doctor.run(up, gateway, engine, as_json=as_json, say=print)


def _asking(run: "Callable[[Client], int]", args: dict[str, Any]) -> int:
    """Run a command that asks the service at --url, or the one on this machine."""
    from millrace.command.client import Client, Refused
    from millrace.up import control

    where = {name: args.pop(name) for name in ("state_dir", "port")}
    url = args.pop("url")
    try:
        url = url or control.order(_folder(where), control.Ps(), lambda text: None).url
        return run(Client(url, args.pop("key")))
    except (control.ControlError, Refused) as error:
        print(f"millrace: {error}", file=sys.stderr)
        return 1


def _folder(args: dict[str, Any]) -> Path:
    """The service that is meant: a directory or a port that was named, else the only one there is."""
    from millrace.up import control

    named = settings.load(settings.Up, args)
    if named.state_dir or args["port"] is not None:
        return control.state_dir(named)
    return control.find(control.default_root())


if __name__ == "__main__":
    sys.exit(main())
