"""A log line is one line, and says what was said."""

import io
import json
import logging
import sys

from millrace import logs

EVIL = "a\r\nb\x1b[31m\u2028\x9b2J"


def logged(form: str) -> str:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs.JsonLines("gateway", "gw_1") if form == "json" else logs.PlainLines("gw_1"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.error("it said %s", EVIL, exc_info=sys.exc_info(), extra=logs.fields(request=EVIL, none=""))
    return out.getvalue()


def test_json_lines() -> None:
    """One object a line, whatever is in it, and nothing in it that a terminal obeys."""
    text = logged("json")
    said = json.loads(text)

    assert 1 == text.count("\n") and text.isascii() and "\x1b" not in text
    assert (EVIL, f"it said {EVIL}", "gw_1", "ERROR") == tuple(
        said[key] for key in ("request", "message", "id", "level")
    )
    assert EVIL in said["exception"]


def test_plain_lines() -> None:
    """No line but the first looks like one of ours, and nothing reaches the terminal."""
    first, *rest = logged("text").splitlines()

    assert " ERROR gw_1 test: it said a\\x0d\\x0ab\\x1b[31m" in first and " request=a\\x0d" in first
    assert all(line.startswith("  ") for line in rest)
    assert not any(c in first + "".join(rest) for c in "\x1b\x9b\u2028\r")


def test_a_line_is_read_back_short() -> None:
    """As `millrace up` shows it; what is not JSON stays as it is."""
    assert "ERROR test: it said a\\x0d" in logs.plain(logged("json").strip())
    assert ["{no", "Segmentation fault"] == [logs.plain(line) for line in ("{no", "Segmentation fault")]
