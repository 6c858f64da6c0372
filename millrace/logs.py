"""Log lines: JSON for programs, plain on a terminal. Nobody's text can end a line or colour a terminal."""

import json
import logging
import re
import sys
import time
from typing import Any

import msgspec

from millrace.settings import Process, SettingError

FORMATS = ("auto", "json", "text")

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def level(given: Process) -> int:
    """The number of its level. Raises SettingError where its lines cannot be written as it says."""
    found = logging.getLevelNamesMapping().get(given.log.upper())
    if found is None:
        raise SettingError(f"log: {given.log!r} is not a level: debug, info, warning or error")
    if given.log_format not in FORMATS:
        raise SettingError(f"log_format: {given.log_format!r} is none of {', '.join(FORMATS)}")
    return found


def set_up(level: int, role: str, id: str, form: str) -> None:
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role, id) if as_json else PlainLines(id))
    logging.basicConfig(level=level, handlers=[handler])


def fields(**given: Any) -> dict[str, Any]:
    """As a log call's `extra`: what a line says beside its text."""
    return {"fields": given}


def _escaped(text: str) -> str:
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class JsonLines(logging.Formatter):
    def __init__(self, role: str, id: str):
        super().__init__()
        self._own = {"role": role, "id": id}

    def format(self, record: logging.LogRecord) -> str:
        seconds, part = divmod(record.created, 1.0)
        said: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(part * 1e6):06d}Z",
            "level": record.levelname,
            **self._own,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        # With escapes beyond ASCII: what shows the file is a terminal too.
        return json.dumps(said, default=str)


class PlainLines(logging.Formatter):
    def __init__(self, id: str):
        super().__init__("%(asctime)s %(levelname)s " + id + " %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        given = getattr(record, "fields", {})
        return _escaped(" ".join([line, *(f"{key}={value}" for key, value in given.items() if value != "")]))

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {_escaped(line)}" for line in lines)  # no line of it looks like one of ours


def plain(line: str) -> str:
    """A line of either kind, short: its level, who said it and what; of an exception, the last line."""
    if not line.startswith("{"):
        return line
    try:
        said = msgspec.json.decode(line, type=dict[str, Any])
        exception = str(said.get("exception", "")).strip().splitlines()
        parts = [f"{said['level']} {said['logger']}: {said['message']}", *exception[-1:]]
    except (msgspec.DecodeError, KeyError):
        return line
    return _escaped(": ".join(parts))
