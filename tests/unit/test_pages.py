"""Weights are drawn into the page cache; whatever the file, nothing of it changes."""

import mmap
import os
from pathlib import Path

import pytest

from services.engine import pages


@pytest.mark.parametrize("size", [0, 1, pages.LARGE, 3 * pages.LARGE + 5])
def test_a_file_is_what_it_was(tmp_path: Path, size: int) -> None:
    """Though none of it was in the page cache."""
    path = tmp_path / "weights"
    path.write_bytes(content := (bytes(range(251)) * (size // 251 + 1))[:size])
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pages.draw_in(path)

    assert content == path.read_bytes()


def test_every_part_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one too, and none beyond it."""
    path, touched = tmp_path / "weights", []

    class Watched(mmap.mmap):
        def __getitem__(self, at: int) -> int:  # type: ignore[override]
            touched.append(at)
            return super().__getitem__(at)

    path.write_bytes(b"x" * (2 * pages.LARGE + 1))
    monkeypatch.setattr(mmap, "mmap", Watched)
    pages.draw_in(path)

    assert [0, pages.LARGE, 2 * pages.LARGE] == touched


def test_a_model_without_a_file_of_weights_is_none_the_worse(tmp_path: Path) -> None:
    """All of a tiny model's weights lie in its graphs."""
    pages.draw_in(tmp_path / "none")
