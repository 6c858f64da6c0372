"""Tool calls written as Python: `[get_weather(city="Rome"), get_time()]`."""

import ast
import json
import warnings
from typing import Any

from services.gateway.speech.parts import Arguments
from services.gateway.speech.reader import CallReader, Malformed, Reading

MAX_CHARS = 1 << 16
MAX_DEPTH = 32
"""Of one call, which is held back to its end and then parsed; the parser's own stack ends far above."""

JSON_WORDS = {"true": True, "false": False, "null": None}
PAIRS = {"(": ")", "[": "]", "{": "}"}


class Pythonic(CallReader):
    """A list of calls as the first thing in an answer. Each call comes out at its end, if it is one."""

    def read(self) -> Reading[None]:
        try:
            if (yield from self.next_word()) != "[":
                raise self.malformed()
            yield from self._call((yield from self.next_word()))
            while (char := (yield from self.next_word())) == ",":
                yield from self._call((yield from self.next_word()))
            if char != "]":
                raise self.malformed()
            self.held = ""
            yield from self.rest((yield from self.past_space()))
        except Malformed as malformed:
            self.give_up()
            yield from self.rest(malformed.next)

    def _call(self, char: str) -> Reading[None]:
        text = ""
        closers: list[str] = []
        quote, escaped = "", False
        while True:
            text += char
            if quote:
                if char == quote and not escaped:
                    quote = ""
                escaped = char == "\\" and not escaped
            elif not closers and not (char.isalnum() or char in "_.("):
                raise self.malformed()
            elif char in "'\"":
                quote = char
            elif char in PAIRS:
                closers.append(PAIRS[char])
            elif char in ")]}" and closers.pop() != char:
                raise self.malformed()
            if len(text) > MAX_CHARS or len(closers) > MAX_DEPTH:
                raise self.malformed()
            if closers or "(" not in text:
                char = yield from self.next()
                continue
            name, arguments = _understood(text)
            if not name:
                raise Malformed((yield))
            self.say(Arguments(self.call(name), arguments))
            return


def _understood(text: str) -> tuple[str, str]:
    """The name and the arguments as JSON of a call with values for named arguments and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a model's string is its own affair
            call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return "", ""
        given = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
        if None in given:  # **more
            return "", ""
        arguments = json.dumps(given, ensure_ascii=False, allow_nan=False)
        arguments.encode()
        return ast.unparse(call.func), arguments
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return "", ""


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id) if id in JSON_WORDS:
            return JSON_WORDS[id]
        case ast.List(items) | ast.Tuple(items):
            return [_value(item) for item in items]
        case ast.Dict(keys, values):
            # A key that is not there (`**more`) is no literal either.
            named = [ast.literal_eval(key or node) for key in keys]
            if not all(isinstance(key, str) for key in named):
                raise ValueError("a key that JSON has not")
            return dict(zip(named, map(_value, values), strict=True))
    return ast.literal_eval(node)
