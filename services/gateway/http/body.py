"""A request's body: JSON into what a surface understands, and every fault with its parameter's name."""

import codecs
import re
from typing import Any, TypeVar

import msgspec

from millrace.errors import Code, Failure

T = TypeVar("T")

_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def decode(kind: type[T], raw: bytes) -> T:
    decoder = _decoders.get(kind) or _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    raw = raw.removeprefix(codecs.BOM_UTF8)  # editors and shells of Windows begin a file with it
    try:
        body: T = decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except msgspec.DecodeError as error:
        raise _malformed(str(error), raw) from None
    except RecursionError:
        raise refused(None, "The body's JSON is nested too deeply.") from None
    except UnicodeDecodeError:
        raise refused(None, "The body's text is not UTF-8.") from None
    return body


def refused(param: str | None, message: str) -> Failure:
    return Failure(Code.INVALID_REQUEST, message, param=param)


_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_NOT_HERE = re.compile(
    r"(?:Invalid (?:enum )?value (.*)|Expected `array` of length <= 0|Expected `null`, got .*)", re.DOTALL
)
SPELLED = {"True": "true", "False": "false", None: "what it holds"}
_FIELD = re.compile(r"^Object (contains unknown|missing required) field `(.*)`$", re.DOTALL)


def _invalid(said: str) -> Failure:
    """The same, with the parameter's name: msgspec has it in the text, as a JSON path."""
    where = _WHERE.search(said)
    path = where[1] if where else ""
    what = _WHERE.sub("", said)
    if field := _FIELD.match(what):
        name = field[2][:100]
        param = f"{path}.{name}" if path else name
        verb = "Unknown" if field[1] == "contains unknown" else "Missing"
        return refused(param, f"{verb} parameter: '{param}'.")
    if told := _NOT_HERE.fullmatch(what):
        what = f"{SPELLED.get(told[1]) or told[1][:100]} is not supported"
    return refused(path or None, f"Invalid '{path}': {what}." if path else f"Invalid body: {what}.")


_AT = re.compile(r"\(byte (\d+)\)")
_NO_NUMBER = re.compile(rb'"([^"\\]{1,100})"\s*:\s*[\s\[]*-?$')


def _malformed(said: str, raw: bytes) -> Failure:
    """NaN and Infinity are not JSON, but many encoders write them: say which parameter had it."""
    if at := _AT.search(said):
        byte = int(at[1])
        if raw[byte : byte + 1] in {b"N", b"I"} and (
            key := _NO_NUMBER.search(raw[max(0, byte - 200) : byte])
        ):
            name = key[1].decode("utf-8", "replace")
            return refused(name, f"Invalid '{name}': not a finite number.")
    return refused(None, f"The body is not valid JSON: {said}.")


def depth(value: Any, limit: int) -> bool:
    """Whether the value is nested no deeper than the limit."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False
