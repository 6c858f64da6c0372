"""One frozen struct per role. A value comes from the first that has it: flag, MILLRACE_* variable,
millrace.toml, default. An unknown variable or key is an error that names it."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

MOST = 64
"""Processes of one role on one machine; more is a slip of the finger."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Processes = Annotated[int, Meta(ge=0, le=MOST)]
Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Measure = Annotated[float, Meta(ge=0, le=1e9)]
Device = Annotated[str, Meta(pattern="^(cpu|cuda(:[0-9]{1,3})?)$", description="cpu, cuda or cuda:N")]


class Process(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every process takes."""

    nats: str = "nats://127.0.0.1:4222"  # with the role's user and password, where NATS asks for them
    nats_file: str = ""  # a file that has that address, as a container gets its secrets
    tls_ca: str = ""  # PEM files; NATS is reached by TLS where its address says tls://
    tls_cert: str = ""
    tls_key: str = ""
    alive: str = ""  # a file that says twice a second how the process is, for `millrace healthy`
    id: str = ""  # a name for this boot; a random one if empty
    log: str = "info"
    log_format: str = "auto"  # json, text, or auto: text on a terminal
    metrics_at: str = ""  # host:port where this process alone tells its metrics; empty: nowhere


class Gateway(Process, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Port = 8000
    fd: int = -1  # an already listening socket, as `millrace up` hands it over; -1: open host:port
    queue: Count = 256  # jobs waiting and running, all models together: JOBS max_msgs
    replicas: Count = 1  # servers of a NATS cluster that each keep the job queue
    tenant_queue: Count = 64  # with keys: jobs of one tenant waiting and running, for each model
    keys: str = ""  # a key file (`millrace/keys.py`), or its JSON itself; empty: no key is asked for
    origins: str = ""  # whose web pages may ask from a browser, with commas; "*": anybody's
    deadline_s: Seconds = 120.0  # a client may ask for less
    max_body: Count = 4 << 20
    drain_s: Measure = 30.0  # how long streams may go on after SIGTERM
    silence_ms: Count = 150  # a running request this quiet has its engine pinged
    ping_ms: Count = 180  # what a ping may take
    pings: Count = 3  # unanswered ones until the engine counts as gone
    connections: Count = 4096  # open ones; further ones are refused
    slow_sender_s: Seconds = 60.0  # what a whole request may take to arrive
    slow_reader: Count = 1 << 20  # bytes a client may leave unread before its stream is closed
    slow_reader_s: Seconds = 30.0
    metrics: bool = True  # whether requests and tokens are counted
    metrics_open: bool = False  # with keys: whether /metrics is told without one
    kill_button: bool = False  # on the page at /ui; `millrace up` sets it where only its user can press it
    trace_file: str = ""  # where traces are kept, as `millrace up` has it; empty: nowhere
    trace_content: bool = False  # whether traces hold what was asked and answered


class Tokenizer(Process, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str = "demo"
    models: str = ""  # where models are kept; default: below $XDG_DATA_HOME
    max_len: Amount = 0  # shorten the model's context; 0: as the model has it
    # How the model writes tool calls and reasoning; auto: as its chat template shows it.
    tool_parser: Literal["auto", "none", "hermes", "llama3_json", "mistral", "pythonic"] = "auto"
    reasoning_parser: Literal["auto", "none", "deepseek_r1", "qwen3"] = "auto"


class Engine(Process, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str = "demo"
    models: str = ""  # where models are kept; default: below $XDG_DATA_HOME
    device: Device = "cpu"
    cuda_graphs: bool = True
    slots: Amount = 0  # 0: as many as fit, at most 16
    engines: Processes = 1  # that share this machine's memory; `up` passes on how many it runs
    chunk: Count = 64  # prompt tokens that may join one decode step
    fast: bool = False  # whether prompts are computed in fp32 keys and values, and other bits
    spin_us: Amount = 20  # a thread looks so long for more work within a step before it sleeps; 0: not
    step_spans: Measure = 2.0  # engine.step spans a second, as a sample; 0: none
    max_len: Amount = 0
    large_pages: bool = False  # whether keys and values, on a processor, lie in pages of 2 MiB
    prefix_cache_mb: Amount = 512
    prefix_host_mb: Amount = 2048
    prefix_disk_mb: Amount = 0
    prefix_dir: str = ""
    sysroot: str = "/"  # where /proc and /sys are
    speculate: bool = True
    draft: str = ""  # a smaller model with the same tokens, that guesses what this one says
    # The simulated model's costs. A step takes step + row x decoding rows + token x prompt tokens.
    sim_step_ms: Measure = 4.0
    sim_row_ms: Measure = 0.25
    sim_token_ms: Measure = 0.1
    sim_eos: Annotated[float, Meta(ge=0, le=1)] = 0.004  # chance, at each token, that the answer ends there
    sim_poison_seed: int = -1  # for tests: a request with this seed aborts its engine


class Detokenizer(Process, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str = "demo"
    models: str = ""  # where models are kept; default: below $XDG_DATA_HOME


class Up(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`millrace up`; what it does not know itself it passes on to the processes it starts."""

    host: str = "127.0.0.1"
    port: Port = 8000
    model: str = "demo"
    models: str = ""  # where models are kept; default: below $XDG_DATA_HOME
    gateways: Processes = 1
    engines: Processes = 1
    tokenizers: Processes = 1
    detokenizers: Processes = 1
    state_dir: str = ""  # default: one per port below $XDG_STATE_HOME/millrace
    plain: bool = False
    share_processor: bool = True  # whether those who pass tokens on do, as long as one is enough
    broker: str = ""  # a folder as `millrace broker` writes it: NATS runs elsewhere


ROLES: dict[str, type[msgspec.Struct]] = {
    "gateway": Gateway,
    "tokenizer": Tokenizer,
    "engine": Engine,
    "detokenizer": Detokenizer,
    "up": Up,
}

S = TypeVar("S", bound=msgspec.Struct)
PREFIX = "MILLRACE_"
CONFIG = "MILLRACE_CONFIG"
FILE = "millrace.toml"


class SettingError(ValueError):
    """A setting that is unknown or does not fit; the message names it and where it came from."""


@contextmanager
def at_fault(setting: str) -> Iterator[None]:
    """What is found wrong within is this setting's."""
    try:
        yield
    except ValueError as error:
        raise SettingError(f"{setting}: {error}") from None


def load(role: type[S], flags: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> S:
    file = _file(Path(env[CONFIG]) if CONFIG in env else Path(FILE), named=CONFIG in env)
    known = {field for struct in ROLES.values() for field in struct.__struct_fields__}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(key: str, value: Any, source: str) -> None:
        if key not in known:
            raise SettingError(f"unknown setting {source}")
        if key in role.__struct_fields__:
            values[key], sources[key] = value, source

    for key, value in file.items():
        if isinstance(value, dict):
            if key not in ROLES:
                raise SettingError(f"unknown section [{key}] in millrace.toml")
            for inner, given in value.items():
                if inner not in ROLES[key].__struct_fields__:
                    raise SettingError(f"unknown setting {key}.{inner} in millrace.toml")
                if ROLES[key] is role:
                    take(inner, given, f"{key}.{inner} in millrace.toml")
        else:
            take(key, value, f"{key} in millrace.toml")
    for name, value in env.items():
        if name.startswith(PREFIX) and name != CONFIG:
            take(name.removeprefix(PREFIX).lower(), value, name)
    for key, value in flags.items():
        if value is not None:
            take(key, value, f"--{key.replace('_', '-')}")

    for key, value in values.items():  # one by one, so that the message can say which
        kind = msgspec.structs.fields(role)[role.__struct_fields__.index(key)].type
        try:
            str(value).encode()
            values[key] = msgspec.convert(value, kind, strict=False)
        except UnicodeEncodeError:
            raise SettingError(f"{sources[key]}: {value!r} is not in UTF-8") from None
        except msgspec.ValidationError as error:
            one_of = _values(kind)
            wrong = f"{value!r} is none of {one_of}" if one_of else str(error)
            raise SettingError(f"{sources[key]}: {wrong}") from None
    return role(**values)


def _values(kind: Any) -> str:
    """Those that a setting may have, where they can be said."""
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    return next((str(limit.description) for limit in get_args(kind)[1:] if limit.description), "")


ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[\w.:*\[\]-]+", re.ASCII)


def origins(given: str) -> list[str]:
    """As the setting has them: with commas between them, `*` for all or for a part of one."""
    names = [name for each in given.split(",") if (name := each.strip())]
    for name in names:
        if name != "*" and not ORIGIN.fullmatch(name):
            raise SettingError(f"origins: {name!r} is no origin, like https://example.org:8443")
    return names


def _file(path: Path, *, named: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise SettingError(f"{CONFIG} names {path}, which is not there") from None
        return {}
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: {error}") from None
