"""The `millrace` command's first moments."""

import asyncio
import re
import subprocess
import sys
import threading
import tomllib
from typing import Any

import pytest

from millrace import logs, run, settings
from millrace.subjects import Role
from tests.kit.service import ROOT

CLOSED = """
import os, sys

from millrace.command import standard

standard.prepare()
print(sys.stdin.read(), "\u2588")
assert os.open(os.devnull, os.O_RDONLY) == 3
"""

SCRIPT = """
import importlib, os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Pressed())
sys.argv = ["millrace", *{args!r}]
module, _, name = {entry!r}.partition(":")
sys.exit(getattr(importlib.import_module(module), name)())
"""


@pytest.mark.parametrize(
    "module", ["argparse", "msgspec", "millrace.settings", "millrace.command.talk", "millrace.command.doctor"]
)
def test_ctrl_c_is_quiet_from_the_first_module_on(module: str) -> None:
    """While any of them is being read, those that one command alone needs too: status 130, and no words."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["millrace"]
    script = SCRIPT.format(module=module, entry=entry, args=["doctor", "--port", "0"])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (130, "", "") == (done.returncode, done.stdout, done.stderr)


def test_what_was_closed_is_not_taken_by_a_file() -> None:
    """Whoever starts `millrace up <&- >&-` gets a service whose processes have their own input and output."""
    shell = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-W", "error", "-c", CLOSED]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "caf? ?\n"), ("utf-8", "caf? \u2588\n")])
def test_every_letter_can_be_shown(encoding: str, shown: str) -> None:
    """Where the output has none for it, or it is none, as a question mark."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSED],
        input=b"caf\xe9",
        cwd=ROOT,
        env={"PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (0, shown.encode(), b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("words", [*run.NO_THREAD, ""])
def test_a_process_that_may_start_no_thread_says_so(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever library it was that could not; without words, of a stack that nothing has room for. It is no
    defect, and would be the same at the next start."""

    async def live(*_: Any) -> int:
        if words:
            raise RuntimeError(f"a library: {words}, error code: 11")
        threading.stack_size(1 << 50)
        try:
            return await asyncio.to_thread(int)
        finally:
            threading.stack_size(0)

    monkeypatch.setattr(run, "_live", live)
    monkeypatch.setattr(logs, "set_up", lambda *_: None)
    with pytest.raises(settings.SettingError, match=re.escape("pids.max")):
        run.main(Role.TOKENIZER, settings.Tokenizer())
