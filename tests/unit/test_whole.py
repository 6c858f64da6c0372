"""A folder is there whole or not at all, and is made once, whoever dies meanwhile."""

import os
import subprocess
import sys
from os import scandir
from pathlib import Path
from typing import Any

import pytest

from millrace import models, whole
from tests.kit.service import environment

MAKE = """
import sys, time
from pathlib import Path
from millrace import models, whole
try:
    with whole.making(Path(sys.argv[1]), lambda: print("waiting", flush=True)) as made:
        made.mkdir()
        (made / "part").write_text(sys.argv[2])
        print("at work", flush=True)
        sys.stdin.readline()
    print("made", flush=True)
except FileExistsError:
    print("there", flush=True)
"""


def maker(out: Path, text: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, str(out), text]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment({})
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_two_do_not_make_the_same(tmp_path: Path) -> None:
    """The second waits, and finds it made."""
    with maker(tmp_path / "m", "a") as first:
        assert "at work" == said(first)
        with maker(tmp_path / "m", "b") as second:
            assert "waiting" == said(second)
            first.communicate("\n")

            assert "there" == said(second)
    assert "a" == (tmp_path / "m" / "part").read_text()
    assert [tmp_path / "m"] == list(tmp_path.iterdir())


def test_the_dead_are_not_waited_for(tmp_path: Path) -> None:
    """Whoever waited for one that is killed makes it itself, and nothing of the dead is in it."""
    with maker(tmp_path / "m", "a") as first:
        said(first)
        (tmp_path / ".m.partial" / "whole" / "more").write_text("left behind")
        with maker(tmp_path / "m", "b") as second:
            assert "waiting" == said(second)
            first.kill()
            assert "at work" == said(second)
            second.communicate("\n")
    assert {"part": "b"} == {path.name: path.read_text() for path in (tmp_path / "m").iterdir()}
    assert [tmp_path / "m"] == list(tmp_path.iterdir())


def test_a_sweep_takes_what_the_dead_left(tmp_path: Path) -> None:
    """And nothing that somebody is at work on."""
    with maker(tmp_path / "a" / "dead", "") as dead, maker(tmp_path / "b" / "living", "") as living:
        said(dead), said(living)
        dead.kill()
        dead.wait()
        swept = whole.sweep(tmp_path)

        assert [tmp_path / "a" / ".dead.partial"] == swept
        assert "made" == living.communicate("\n")[0].strip()
    assert (tmp_path / "b" / "living" / "part").is_file()


def test_what_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several engines start at once: one ends its work while others look for what the dead left."""

    def gone(path: Any) -> Any:
        if str(path).endswith(whole.SUFFIX):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    with whole.making(tmp_path / "m") as made:
        made.mkdir()

        assert [] == whole.sweep(tmp_path)
        assert [] == models.stored(tmp_path)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """Neither the folder nor its workspace."""
    with pytest.raises(ZeroDivisionError), whole.making(tmp_path / "m") as made:
        made.mkdir()
        raise ZeroDivisionError

    assert [] == list(tmp_path.iterdir())


def test_removal_takes_the_whole_folder(tmp_path: Path) -> None:
    """At once."""
    with whole.making(tmp_path / "m") as made:
        made.mkdir()
        (made / "part").write_text("a")
    whole.remove(tmp_path / "m")

    assert [] == list(tmp_path.iterdir())
