"""`millrace chat` and `millrace complete`: a running service, asked from the terminal."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from millrace import paint
from millrace.command.client import Client, Refused, failure
from millrace.settings import SettingError

NEW = "/new"
HELP = f"Ctrl-C stops an answer and, once more, ends; {NEW} forgets what was said"


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    said = "what to say (default: what is piped in, or a conversation)"
    begun = "how the text begins (default: what is piped in)"
    parser.add_argument("text", nargs="?", metavar="TEXT", help=said if command == "chat" else begun)
    parser.add_argument("--model", help="which of those that are served (default: the only one)")
    if command == "chat":
        parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed, the same answer")
    parser.add_argument("--temperature", type=float, metavar="N", help="0: the likeliest answer (default: 1)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="after so many the answer is cut off")
    parser.add_argument("--json", action="store_true", help="print the answer as the service gives it, whole")


def run(command: str, client: Client, args: dict[str, Any]) -> int:
    """The exit status."""
    text, as_json, system = args["text"], args["json"], args.get("system")
    if text is None and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
    if not text and (text is not None or as_json or command == "complete"):
        raise SettingError(f"{command}: say what, as TEXT or piped in")
    wanted = {"model": args["model"] or _only(client)}
    wanted |= {name: args[name] for name in ("seed", "temperature", "max_tokens") if args[name] is not None}
    said = [{"role": "system", "content": system}] if system else []
    if text is None:
        return _converse(client, wanted, said)
    if command == "chat":
        path, body = "/v1/chat/completions", {"messages": [*said, {"role": "user", "content": text}]}
    else:
        path, body = "/v1/completions", {"prompt": text}
    if as_json:
        print(json.dumps(client.ask("POST", path, {**wanted, **body}), indent=2, ensure_ascii=False))
    else:
        _tell(client, path, {**wanted, **body})
    return 0


def _only(client: Client) -> str:
    """The model that is served."""
    names = client.models()
    if len(names) != 1:
        raise Refused(f"say with --model which: {', '.join(names)}" if names else "no model is served yet")
    return names[0]


def _converse(client: Client, wanted: dict[str, Any], said: list[dict[str, Any]]) -> int:
    """Until the user ends it. What was answered before Ctrl-C stays a part of the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` edits its line with it, and knows those before
    first = len(said)
    print(_dim(f"{wanted['model']} at {client.url}. {HELP}."))
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            _turn(client, wanted, said, first)
    print()
    return 0


def _turn(client: Client, wanted: dict[str, Any], said: list[dict[str, Any]], first: int) -> None:
    """A question and its answer."""
    text = input("> ").strip()
    if text == NEW:
        del said[first:]
    if not text or text == NEW:
        return
    said.append({"role": "user", "content": text})
    began = time.monotonic()
    heard = Heard()
    try:
        _tell(client, "/v1/chat/completions", {**wanted, "messages": said}, heard)
    except KeyboardInterrupt:
        print(_dim(" (stopped)"))
    except Refused as error:
        print(f"millrace: {error}", file=sys.stderr)
        if not heard.text:
            said.pop()
            return
    else:
        print(_dim(f"({heard.tokens} tokens, {time.monotonic() - began:.2f} s)"))
    said.append({"role": "assistant", "content": heard.text})


class Heard:
    """What has come of an answer."""

    text = ""
    tokens = 0


def _tell(client: Client, path: str, body: dict[str, Any], heard: Heard | None = None) -> None:
    """Print an answer as it comes."""
    heard = heard or Heard()
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    ended, last = "", "\n"
    with contextlib.closing(client.events("POST", path, body)) as events:
        try:
            for kind, value in _pieces(data for _, data in events):
                if kind == "content":
                    heard.text += value
                    print(last := _shown(value), end="", flush=True)
                elif kind == "reasoning" and sys.stdout.isatty():
                    print(_dim(last := _shown(value)), end="", flush=True)
                elif kind == "tokens":
                    heard.tokens = value
                elif kind == "finish":
                    ended = value
        finally:
            if not last.endswith("\n"):
                print(flush=True)
    if ended == "length":
        why = "(cut off: --max-tokens, or the end of the model's context)"
        print(_dim(why, sys.stderr), file=sys.stderr)


def _pieces(data: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """content, reasoning, tokens and finish, of a stream of either surface. Raises Refused."""
    for each in data:
        if each == "[DONE]":
            return
        chunk = json.loads(each)
        if error := chunk.get("error"):
            raise failure(error)
        if usage := chunk.get("usage"):
            yield "tokens", usage["completion_tokens"]
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            if reasoning := delta.get("reasoning_content"):
                yield "reasoning", reasoning
            if content := delta.get("content") or choice.get("text"):
                yield "content", content
            if finish := choice.get("finish_reason"):
                yield "finish", finish
    raise Refused("the answer broke off")


_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def _shown(text: str) -> str:
    """What a model says does not command a terminal."""
    return text.translate(_CONTROL) if sys.stdout.isatty() else text


def _dim(text: str, out: Any = None) -> str:
    return paint.brush(paint.wanted(out or sys.stdout))(text, "2")
