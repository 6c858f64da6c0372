"""What a machine keeps of models is bounded, and goes when it is not wanted any more."""

import os
import time
from pathlib import Path

import pytest

from millrace import cache, cli, models, whole
from millrace.cache import DAY_S, UNUSED_S, Copy, Of, stale
from services.engine.model import prepare
from tests.kit.checkpoint import write_checkpoint
from tests.kit.models import FAMILIES

NOW = 1e9


def copy(name: str, of: Of | None, *, age: float = 0, size: int = 10, kind: str = "converted") -> Copy:
    return Copy(Path("/cache") / kind / name, of, NOW - age, size)


def names(found: dict[Path, str]) -> set[str]:
    return {path.name for path in found}


def test_of_one_source_the_newest_version_stays() -> None:
    """For each kind of copy and each kind of machine, since several may share a home."""
    found = [
        copy("old", Of("/m", "1"), age=9),
        copy("new", Of("/m", "2")),
        copy("other", Of("/n", "1"), age=9),
        copy("here", Of("/m", "1", "here"), kind="prepared"),
        copy("there", Of("/m", "1", "there"), kind="prepared"),
        copy("here before", Of("/m", "0", "here"), age=9, kind="prepared"),
    ]

    assert {"old", "here before"} == names(stale(found, NOW))


def test_what_is_not_used_goes() -> None:
    """After a month; after a day, if what it is of is not there any more."""
    found = [
        copy("used", Of("/m", "1"), age=UNUSED_S - 1),
        copy("unused", Of("/n", "1"), age=UNUSED_S + 1),
        copy("without a note", None, age=UNUSED_S + 1),
        copy("orphan", Of("/gone", "1"), age=DAY_S + 1),
        copy("orphan of today", Of("/away", "1")),
    ]
    gone = [Path("/gone"), Path("/away")]

    assert {"unused", "without a note", "orphan"} == names(stale(found, NOW, gone))


def test_the_last_used_stay_when_it_is_full() -> None:
    """Those that were used longest ago make room."""
    found = [copy(str(age), Of(f"/{age}", "1"), age=age) for age in (1, 4, 2, 3)]

    assert {"3", "4"} == names(stale(found, NOW, limit=25))


def test_the_engine_tidies_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it makes has a note, and what that replaces goes; so does what a killed process left."""
    caplog.set_level("INFO")
    root, hub = tmp_path / "cache", tmp_path / "hub"

    def make(seed: int) -> tuple[Path, Path]:
        write_checkpoint(hub, FAMILIES["llama2"], seed=seed)
        ready = prepare.converted(models.find(str(hub)), root)
        graphs = prepare.prepared(ready, root)
        assert graphs
        return ready, graphs

    first = make(0)
    (root / "prepared" / f".killed{whole.SUFFIX}").mkdir()
    os.utime(first[0] / cache.NOTE, (NOW, time.time() - 5))
    second = make(1)
    prepare.tidied(root)

    assert [second[0]] == list((root / "converted").iterdir())
    assert {*second, first[1]} == {found.path for found in cache.copies(root)}
    os.utime(first[1] / cache.NOTE, (NOW, time.time() - DAY_S - 5))  # its source has gone before it
    prepare.tidied(root)
    assert set(second) == {found.path for found in cache.copies(root)}
    assert "there is a newer one" in caplog.text and "left by a process that was killed" in caplog.text


def test_use_is_what_counts(tmp_path: Path) -> None:
    """A copy that is used again is young again."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    made = prepare.converted(models.find(str(hub)), tmp_path / "cache")
    os.utime(made / cache.NOTE, (1, 1))
    prepare.converted(models.find(str(hub)), tmp_path / "cache")
    (found,) = cache.copies(tmp_path / "cache")

    assert time.time() - found.used < 60


def test_a_relative_folder_for_caches_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the standard says; or each folder that a service is started in would have a cache of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")

    assert cache.root() == tmp_path / ".cache" / "millrace"


def test_where_no_copy_can_be_kept_another_folder_is_asked_for(tmp_path: Path) -> None:
    """The message names the one that is there, and how to choose."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    (tmp_path / "cache").write_text("in the way")

    with pytest.raises(ValueError, match=rf"{tmp_path}/cache.*XDG_CACHE_HOME"):
        prepare.converted(models.find(str(hub)), tmp_path / "cache")


def test_model_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Says what it removes, and why; with --all nothing is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    made = prepare.converted(models.find(str(hub)), cache.root())
    assert 0 == cli.main(["model", "clean"])
    assert made.is_dir() and "1 copies of" in capsys.readouterr().out
    os.utime(made / cache.NOTE, (1, 1))
    assert 0 == cli.main(["model", "clean"])
    assert not made.exists() and f"removed {made}: unused for a month" in capsys.readouterr().out
    made = prepare.converted(models.find(str(hub)), cache.root())

    assert 0 == cli.main(["model", "clean", "--all"])
    assert not made.exists() and "0 copies of 0 B" in capsys.readouterr().out
