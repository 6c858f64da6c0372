"""What lies in large pages, where there are any, says what it says in small ones."""

import logging
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

from millrace import models, possible, settings
from millrace.convert import convert
from services.engine import opening
from services.engine.model import pages
from services.engine.model.near import mapped
from services.engine.model.session import OrtModel
from tests.kit.checkpoint import write_checkpoint
from tests.kit.models import FAMILIES


def advice(address: int) -> list[str]:
    """What the kernel was told of the memory at this address: hg, have it in large pages; nh, in none."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if limits := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(limits[1], 16) <= address < int(limits[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise LookupError(f"{address:x} is nobody's")


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


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, pages.LARGE // 2 + 5)])
def test_memory_begins_where_a_large_page_does(shape: tuple[int, int], large: bool) -> None:
    """All of it is there: zeros, that hold what is written."""
    memory = mapped(np.dtype(np.float32), *shape, large=large)
    assert (memory.shape, memory.ctypes.data % pages.LARGE) == (shape, 0)
    assert not memory.any()

    memory[:] = written = np.arange(memory.size, dtype=np.float32).reshape(shape)
    assert np.array_equal(written, memory)


@pytest.mark.skipif(not pages.SAID.exists(), reason="this system has no large pages to ask for")
@pytest.mark.parametrize("large", [False, True])
def test_keys_and_values_are_in_large_pages_if_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """By the engine's setting, and not else: they would take many times the memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    folder = convert(tmp_path / "hub", tmp_path / "model")
    given = settings.Engine(slots=2, max_len=64, large_pages=large)
    model = opening.real(models.find(str(folder)), given)
    assert isinstance(model, OrtModel)
    address = model._slots.bound(0, 0, 0, 1)[-1]

    assert ("hg" if large else "nh") in advice(address)
    opening.warm_up(model)


def test_it_is_said_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a kernel that never gives them, or does not know them; the memory is there all the same."""
    said = tmp_path / "enabled"
    said.write_text("always madvise [never]\n")
    monkeypatch.setattr(pages, "SAID", said)
    with caplog.at_level(logging.WARNING, "millrace.engine"):
        assert mapped(np.dtype(np.int8), 5, large=True).nbytes == 5
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
        assert mapped(np.dtype(np.int8), 5, large=True).nbytes == 5

    told = [record.getMessage() for record in caplog.records]
    assert ["says never" in told[0], "MADV_HUGEPAGE" in told[1]] == [True, True]


def test_nothing_is_said_where_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not hasattr(mmap, "MADV_HUGEPAGE") or not pages.SAID.exists():
        pytest.skip("this system has no large pages to ask for")
    said = tmp_path / "enabled"
    said.write_text("always [madvise] never\n")
    monkeypatch.setattr(pages, "SAID", said)
    with caplog.at_level(logging.WARNING, "millrace.engine"):
        mapped(np.dtype(np.int8), 5, large=True)

    assert caplog.records == []


@pytest.mark.parametrize(
    ("kind", "device", "why"),
    [("millrace_sim", "cpu", "simulated"), ("", "cpu", "exported"), ("", "cuda", "cuda")],
)
def test_they_are_refused_where_they_would_do_nothing(
    tmp_path: Path, kind: str, device: str, why: str
) -> None:
    """A simulated model, one that others exported, and on a GPU."""
    if why == "exported":
        (tmp_path / models.GUEST).touch()
    of = models.Model("it", tmp_path, {"model_type": kind})
    with pytest.raises(settings.SettingError, match=f"--large-pages: .*{why}"):
        possible.large_pages(of, settings.Engine(device=device, large_pages=True))
    possible.large_pages(of, settings.Engine(device=device))
