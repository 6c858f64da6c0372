"""Prefixes in a file: what a restart finds there is what was put there, or it is not used."""

import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from services.engine.model.shelf import AGAIN_S, ENTRY, HEADER, FileShelf

LIKE = np.empty((3, 100), np.int8)
NAMES = [bytes([i]) * 32 for i in range(1, 10)]


def block(i: int) -> npt.NDArray[np.int8]:
    return np.full_like(LIKE, i)


def same(one: npt.NDArray[np.int8], other: npt.NDArray[np.int8] | None) -> bool:
    return other is not None and np.array_equal(one, other)


def shelf(folder: Path, *, kind: str = "a model", places: int = 4) -> FileShelf:
    return FileShelf(folder, HEADER + places * (ENTRY + LIKE.nbytes), kind, LIKE)


def filled(folder: Path) -> None:
    made = shelf(folder)
    for i in range(4):
        made.put(NAMES[i], block(i))
    made.close()


def test_a_restart_finds_what_was_there(tmp_path: Path) -> None:
    """Bit for bit."""
    filled(tmp_path)
    again = shelf(tmp_path)

    assert 4 == again.counts["prefixes_found"]
    for i in range(4):
        assert same(block(i), again.take(NAMES[i]))


def test_it_never_takes_more_than_it_may(tmp_path: Path) -> None:
    """What was not used longest goes, also after a restart, and the file does not grow."""
    filled(tmp_path)
    again = shelf(tmp_path)
    again.touch(NAMES[0])
    for i in range(4, 7):
        again.put(NAMES[i], block(i))
    again.close()
    last = shelf(tmp_path)

    assert {NAMES[0], *NAMES[4:7]} == {name for name in NAMES if name in last}
    assert HEADER + 4 * (ENTRY + LIKE.nbytes) == (tmp_path / "prefixes-0").stat().st_size


@pytest.mark.parametrize(
    "at", [HEADER, HEADER + 40, HEADER + 4 * ENTRY + 150], ids=["name", "digest", "block"]
)
def test_a_changed_byte_is_noticed(tmp_path: Path, at: int) -> None:
    """The block is forgotten and counted, the others stay."""
    filled(tmp_path)
    with (tmp_path / "prefixes-0").open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    again = shelf(tmp_path)
    names = [bytes([1 ^ 1]) + NAMES[0][1:], *NAMES[:4]]  # as the changed one is called now, too
    taken = [content for name in names if (content := again.take(name)) is not None]

    assert [1, 2, 3] == [content[0, 0] for content in taken]
    assert (1, 3) == (again.counts["prefixes_damaged"], len(again))


def test_a_torn_file_is_noticed(tmp_path: Path) -> None:
    """What is left of it is used."""
    filled(tmp_path)
    os.truncate(tmp_path / "prefixes-0", HEADER + 4 * ENTRY + 2 * LIKE.nbytes + 10)
    again = shelf(tmp_path)
    taken = [again.take(name) is not None for name in NAMES[:4]]

    assert [True, True, False, False] == taken
    assert 2 == again.counts["prefixes_damaged"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: shelf(path.parent, kind="another model").close(),
        lambda path: shelf(path.parent, places=5).close(),
        lambda path: path.write_bytes(b"something else"),
        lambda path: path.write_bytes(b""),
    ],
    ids=["another model's", "of another size", "nonsense", "empty"],
)
def test_another_models_file_is_not_used(tmp_path: Path, spoil: object) -> None:
    """Nor anything else that is not what this engine would have written; and it can be used from then on."""
    filled(tmp_path)
    assert callable(spoil)
    spoil(tmp_path / "prefixes-0")
    again = shelf(tmp_path)
    found = len(again)
    again.put(NAMES[0], block(7))
    again.close()
    last = shelf(tmp_path)

    assert (0, 1) == (found, len(last))
    assert same(block(7), last.take(NAMES[0]))


def test_two_engines_do_not_share_a_file(tmp_path: Path) -> None:
    """The second takes another one."""
    one, other = shelf(tmp_path), shelf(tmp_path)
    one.put(NAMES[0], block(1))

    assert NAMES[0] not in other
    assert ["prefixes-0", "prefixes-1"] == sorted(path.name for path in tmp_path.iterdir())
    assert 0o600 == (tmp_path / "prefixes-1").stat().st_mode & 0o777


def test_a_full_disk_ends_the_keeping_for_a_while_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before is still there, and later the disk is tried again."""
    made = shelf(tmp_path)
    made.put(NAMES[0], block(0))
    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda fd, data, at: write(fd, data[: len(data) // 2], at))
    made.put(NAMES[1], block(1))
    monkeypatch.undo()
    made.put(NAMES[2], block(2))
    at_once = [name for name in NAMES if name in made]
    later = time.monotonic() + AGAIN_S
    monkeypatch.setattr("time.monotonic", lambda: later)
    made.put(NAMES[2], block(2))

    assert [NAMES[0]] == at_once
    assert [NAMES[0], NAMES[2]] == [name for name in NAMES if name in made]
    assert same(block(0), made.take(NAMES[0]))
    assert same(block(2), made.take(NAMES[2]))
