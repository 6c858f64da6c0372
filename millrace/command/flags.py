"""The flags of the `millrace` command: of each role's settings, under the same names, and of all else."""

import argparse
from collections.abc import Collection
from pathlib import Path

import msgspec

from millrace import settings
from millrace.command import completion, model_command, talk
from millrace.command.client import KEY
from millrace.settings import ROLES

COMMANDS = {
    "up": "run a whole service on this machine",
    "gateway": "run one gateway: HTTP in front, the owner of its requests",
    "tokenizer": "run one tokenizer: text to jobs",
    "engine": "run one engine: jobs to tokens",
    "detokenizer": "run one detokenizer: tokens to text",
    "ps": "list the processes of a running service",
    "top": "watch a running service: processes, load, tokens a second",
    "scale": "run more or fewer processes of a role",
    "restart": "replace the processes of a running service, without losing a stream",
    "chat": "talk with a model of a running service",
    "complete": "let a model of a running service go on with a text",
    "trace": "draw where the time of a request went",
    "key": "make an API key",
    "model": "get, convert, list, measure, check and remove models",
    "broker": "write a nats-server configuration and the roles' passwords, for a server of your own",
    "healthy": "say whether the process that writes this file is well: a container's health check",
    "doctor": "say what would keep it from working here, and what mends that",
    "completion": "print what lets a shell complete these commands, like: . <(millrace completion bash)",
    "version": "print the version",
}

HELP = {
    "nats": "where NATS is, with this role's user and password",
    "nats_file": "a file with that address, instead of it",
    "alive": "a file for this process to say twice a second how it is, for `millrace healthy`",
    "tls_ca": "file with the certificate authority that NATS's certificate is of",
    "tls_cert": "file with this process's own certificate, where NATS asks for one",
    "tls_key": "file with its key",
    "broker": "a folder as `millrace broker` writes it: NATS runs elsewhere, and none is started",
    "replicas": "servers of a NATS cluster that each keep the job queue",
    "id": "a name for this boot (default: a random one)",
    "log": "debug, info, warning or error",
    "log_format": "json, text, or auto: text on a terminal",
    "metrics_at": "host:port where this process alone tells its metrics (empty: nowhere)",
    "metrics": "count requests and tokens for /metrics",
    "metrics_open": "with keys: /metrics is told without one, to everybody who reaches the gateway",
    "host": "address to listen on",
    "port": "port to listen on",
    "fd": "an already listening socket, instead of host and port",
    "queue": "jobs that may wait and run at once, all models together",
    "tenant_queue": "with keys: jobs of one tenant that may wait and run, for each model",
    "keys": "a file with the keys that clients need, or its JSON itself (empty: everybody may come)",
    "origins": "web pages of these origins may ask from a browser: https://example.org,... or *",
    "deadline_s": "seconds a request may take; a client may ask for less",
    "max_body": "bytes a request's body may have",
    "drain_s": "seconds that streams may go on after SIGTERM",
    "silence_ms": "a running request this quiet has its engine pinged; slow steps are given more",
    "ping_ms": "milliseconds a ping may take",
    "pings": "unanswered pings until an engine counts as gone",
    "connections": "connections that may be open at once",
    "slow_sender_s": "seconds a whole request may take to arrive",
    "slow_reader": "bytes a client may leave unread before its stream is closed",
    "kill_button": "a button on the page at /ui that kills an engine; `up` has it on loopback, without keys",
    "trace_file": "where traces are kept as lines of OTLP JSON (empty: nowhere)",
    "trace_content": "record in traces what was asked and answered",
    "slow_reader_s": "seconds a client may leave anything unread",
    "model": "the model to serve",
    "models": "where models are kept (default: $XDG_DATA_HOME/millrace/models)",
    "max_len": "shorten the model's context to this many tokens (0: as the model has it)",
    "tool_parser": "how the model writes tool calls: auto, none, hermes, llama3_json, mistral or pythonic",
    "reasoning_parser": "how the model writes reasoning: auto, none, deepseek_r1 or qwen3",
    "device": "where the engine computes: cpu, cuda, or cuda:N; with cuda, `up` spreads engines over GPUs",
    "cuda_graphs": "with cuda: record decoding steps once for each shape, and replay them",
    "slots": "sequences that run at once (0: as many as fit, at most 16)",
    "sysroot": "where /proc and /sys are, if a container has the machine's elsewhere",
    "chunk": "prompt tokens that may join one decode step",
    "fast": "compute prompts faster, in other bits; what was answered is computed again as part of a prompt",
    "large_pages": "on a processor: large pages for keys and values: faster with long contexts, more memory",
    "prefix_cache_mb": "MiB for the keys and values of prompts and answers that may come again (0: none)",
    "speculate": "verify guesses at what a lone sequence says next; its answer stays the same",
    "draft": "a smaller model with the same tokens that guesses at what a lone sequence says next",
    "spin_us": "microseconds that a thread looks for more work within a step before it sleeps (0: none)",
    "step_spans": "engine.step spans a second in traces (0: none)",
    "prefix_host_mb": "with cuda: MiB of memory, taken at the start, for what its GPU cannot hold (0: none)",
    "prefix_disk_mb": "MiB on disk for what has no room there; a restart finds it again (0: none)",
    "prefix_dir": "where that file lies (default for `up`: in its state directory)",
    "sim_step_ms": "simulated model: milliseconds of a step",
    "sim_row_ms": "simulated model: milliseconds of a step for each decoding sequence",
    "sim_token_ms": "simulated model: milliseconds of a step for each prompt token",
    "sim_eos": "simulated model: chance at each token that the answer ends",
    "sim_poison_seed": "simulated model: a request with this seed aborts its engine (-1: none)",
    "gateways": "how many gateways",
    "engines": "how many engines share this machine",
    "tokenizers": "how many tokenizers",
    "detokenizers": "how many detokenizers",
    "state_dir": "where the service keeps its state (default: $XDG_STATE_HOME/millrace/<port>)",
    "plain": "plain lines instead of a panel",
    "share_processor": "nats-server, detokenizers and gateways share a processor while it is enough for them",
}

ONLY = "(default: the only one that runs on this machine)"

NOT_PASSED = {"nats", "nats_file", "alive", "id", "fd", "trace_file", "metrics_at"}
"""`millrace up` chooses these for each process."""


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="millrace",
        description="An OpenAI-compatible inference service whose streams survive the death of its parts.",
        epilog="Of `up` and of the roles a flag --some-name may also be given as MILLRACE_SOME_NAME, or as "
        "some_name in millrace.toml.",
        allow_abbrev=False,
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="command")
    made = {
        name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in COMMANDS.items()
    }
    for name, struct in ROLES.items():
        _add_flags(made[name], struct)
    taken = {*settings.Up.__struct_fields__, *NOT_PASSED}
    group = made["up"].add_argument_group("passed on to the processes it starts")
    for name, struct in ROLES.items():
        if name != "up":
            taken |= _add_flags(group, struct, without=taken)
    model_command.add_actions(made["model"])
    actions = made["key"].add_subparsers(dest="action", required=True, metavar="action")
    text = "print a new key, and the line for the key file: the file holds its hash alone"
    new = actions.add_parser("new", help=text, description=text, allow_abbrev=False)
    whose = new.add_mutually_exclusive_group(required=True)
    whose.add_argument("--tenant", default="", help="whose key it is")
    whose.add_argument("--operator", default="", help="who reads /metrics with it, and nothing else")
    made["broker"].add_argument(
        "folder", type=Path, help="gets a folder for nats-server and one for each role"
    )
    made["broker"].add_argument(
        "--nats",
        default="nats:4222",
        help="where the roles will reach it (default: nats:4222); several, with commas, are a cluster",
    )
    made["broker"].add_argument(
        "--store", default="/data", help="where it keeps its streams (default: /data)"
    )
    made["broker"].add_argument(
        "--tls", default="", help="a folder, as the server sees it, with ca.pem, cert.pem and key.pem"
    )
    made["broker"].add_argument(
        "--join",
        action="append",
        default=[],
        metavar="NAME=SERVERS",
        help="another cluster, joined by NATS gateways; it keeps no streams",
    )
    made["broker"].add_argument(
        "--leaf",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="a leaf node, and where the engines beside it will reach it",
    )
    made["healthy"].add_argument(
        "file", type=Path, nargs="?", help="as its --alive names it (default: $MILLRACE_ALIVE)"
    )
    made["healthy"].add_argument("--live", action="store_true", help="whether it runs, ready or not")
    made["doctor"].add_argument("--json", action="store_true", help="print a JSON list")
    _add_flags(made["doctor"], settings.Up, only={"host", "port", "model", "models", "engines", "state_dir"})
    _add_flags(made["doctor"], settings.Engine, only={"device", "slots", "max_len", "fast", "draft"})
    made["ps"].add_argument("--json", action="store_true", help="print a JSON list")
    made["scale"].add_argument("size", metavar="role=number", help="like engine=3")
    made["restart"].add_argument("role", nargs="?", help="gateway, tokenizer, engine, detokenizer or nats")
    trace = made["trace"]
    trace.add_argument(
        "request", nargs="?", metavar="REQUEST-ID", help="x-request-id, an answer's id, or a trace's id"
    )
    trace.add_argument("--last", action="store_true", help="the request that came last (the default)")
    trace.add_argument("--slow", action="store_true", help="the slowest of those that are kept")
    made["completion"].add_argument("shell", choices=completion.SHELLS)
    once = "print a table and end, as where there is no terminal"
    made["top"].add_argument("--once", action="store_true", help=once)
    for name in ("chat", "complete"):
        talk.add_arguments(made[name], name)
    for name in ("top", "chat", "complete"):
        made[name].add_argument("--key", metavar="KEY", help=f"an API key (default: ${KEY})")
        made[name].add_argument("--url", help="of the service (default: the one that runs on this machine)")
    for name in ("ps", "scale", "restart", "trace", "top", "chat", "complete"):
        made[name].add_argument("--port", metavar="N", help=f"of the service {ONLY}")
        made[name].add_argument("--state-dir", metavar="TEXT", help=f"of the service {ONLY}")
    return whole


def _add_flags(
    parser: argparse._ActionsContainer,
    struct: type[msgspec.Struct],
    *,
    without: Collection[str] = (),
    only: Collection[str] | None = None,
) -> set[str]:
    added = set()
    for field in msgspec.structs.fields(struct):
        if field.name in without or (only is not None and field.name not in only):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        text = HELP[field.name].replace("%", "%%")
        if field.type is bool:
            text += " (default: on)" if only is None and field.default is True else ""
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            if only is None and field.default != "" and "default" not in text:
                text += f" (default: {field.default})"
            kind = getattr(field.type, "__origin__", field.type)  # without its limits
            parser.add_argument(flag, metavar="N" if kind in (int, float) else "TEXT", help=text)
        added.add(field.name)
    return added
