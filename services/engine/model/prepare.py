"""From a model folder to graphs that load at once: what takes time is done once a machine, and kept.

    ~/.cache/millrace/
      converted/<name>-<hash>     our form of a Hugging Face folder, by its configuration and files' dates
      prepared/<hash>             graphs optimised, weights packed, for this processor and ONNX Runtime

Packed weights are mapped from their file, so all graphs of a model, and all engines of a machine, share
one copy of them in memory, and loading them takes a fraction of a second.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from millrace import __version__, cache, pooling, whole
from millrace.convert import card, convert, fast, packed, text
from millrace.convert.network import Form
from millrace.convert.runtime import ort, session
from millrace.messages import Sampling
from millrace.models import Model, inside
from services.engine.model import pages
from services.engine.model.session import OrtModel
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence

log = logging.getLogger("millrace.engine")

CHECKED = 300
"""Tokens of a prompt that is tried out: more than ONNX Runtime sums at once."""

SAY_S = 5.0  # between two lines about a conversion's progress


def converted(model: Model, root: Path, device: card.Device = "cpu") -> Path:
    """The model in our form for this device: its own folder, or one in the cache."""
    if model.converted:
        if (of := card.load(model.folder)).device != device:
            how = f"millrace model convert --device {device} {of.source or 'FOLDER'}"
            raise ValueError(f"{model.folder} is written for {of.device}: run `{how}`, and serve its result")
        return model.folder
    known = hashlib.sha256((model.folder / "config.json").read_bytes() + __version__.encode())
    known.update(device.encode() if device != "cpu" else b"")
    names = [path.name for path in model.folder.glob("*.safetensors*")]
    for name in sorted((*names, text.CALIBRATION, packed.OLDER, *pooling.files(model.folder))):
        if (path := inside(model.folder, name)).is_file():
            status = path.stat()
            known.update(f"{name} {status.st_size} {status.st_mtime_ns} {card.VERSION}".encode())
    out = root / "converted" / f"{model.folder.name}-{known.hexdigest()[:16]}"
    if not cache.there(out):
        cache.writable(root)
        log.info("converting %s into %s", model.folder, out)
        said = 0.0

        def progress(done: int, total: int, what: str) -> None:
            nonlocal said
            if time.monotonic() - said > SAY_S or done == total:
                said = time.monotonic()
                log.info("converting: %d of %d, %s", done, total, what)

        with contextlib.suppress(FileExistsError), whole.making(out, _another) as made:
            convert(model.folder, made, progress=progress, device=device)
            if found := card.load(made).quality:
                log.info("converted:\n%s", found.table())
            cache.note(made, cache.Of(str(model.folder), known.hexdigest()))
    return cache.used(out)


def tidied(root: Path) -> None:
    """What is not wanted any more is removed; the log says what, and why."""
    for path, why in cache.tidy(root).items():
        log.info("removed %s: %s", path, why)


def _another() -> None:
    log.info("another engine makes this machine's copy of the model: waiting for it")


def prepared(folder: Path, root: Path) -> Path | None:
    """The folder's graphs, ready for this machine; none if they cannot be kept.

    Only for int8: of ONNX Runtime 1.31's packed weights, those of MatMulNBits come back wrong from a
    file, and those of MatMul crash.
    """
    of = card.load(folder)
    if of.quant != "int8":
        return None
    out = root / "prepared" / hashlib.sha256(f"{of.digest} {machine()}".encode()).hexdigest()[:32]
    if cache.there(out):
        pages.draw_in(_packed(out, Form.MIXED))
        return cache.used(out)
    try:
        with whole.making(out, _another) as made:
            made.mkdir()
            _prepare(folder, of, made)
            kind = hashlib.sha256(machine().encode()).hexdigest()
            cache.note(made, cache.Of(str(folder), of.digest, kind))
            if not np.array_equal(
                _sample(OrtModel(folder, 2, 4)), _sample(OrtModel(folder, 2, 4, graphs=made))
            ):
                raise ValueError("ONNX Runtime's packed weights do not give the same results")
    except FileExistsError:  # another engine was faster
        return out
    except Exception as error:  # ONNX Runtime has its own kinds; without preparation the engine still runs
        log.warning("prepared graphs cannot be kept in %s: %s", out, error)
        return None
    return out


def faster(folder: Path, root: Path, exact: Path | None) -> Path:
    """The graphs of fast mode, beside the prepared exact ones, with whose weights they share a file;
    ValueError if this machine cannot have them."""
    of = card.load(folder)
    if exact is None:
        raise ValueError(f"it needs prepared graphs, and none can be kept in {root}")
    known = f"{machine()} fast"
    out = root / "prepared" / hashlib.sha256(f"{of.digest} {known}".encode()).hexdigest()[:32]
    if out.exists():
        return cache.used(out)
    try:
        with whole.making(out, _another) as made:
            made.mkdir()
            for form in fast.FORMS:
                graph = onnx.load(folder / of.graphs[form.value], load_external_data=False)
                _save(fast.faster(graph).SerializeToString(), of, form, made, folder)
                _share(_packed(exact, Form.MIXED), _packed(made, form))
            np.save(made / fast.SCALES, fast.scales(graph, folder, of.kv_heads, of.head_dim))
            cache.note(made, cache.Of(str(folder), of.digest, hashlib.sha256(known.encode()).hexdigest()))
            _check(folder, exact, made)
    except FileExistsError:  # another engine was faster
        pass
    except Exception as error:  # ONNX Runtime has its own kinds
        raise ValueError(f"its graphs cannot be prepared in {out}: {error}") from None
    return out


def _check(folder: Path, exact: Path, made: Path) -> None:
    """A prompt gives the same bits however it is cut: fail-over and shared prefixes rest on it."""
    model = OrtModel(folder, 2, CHECKED, graphs=exact, fast=made)
    words = [(7 * i) % model.card.vocab for i in range(min(CHECKED, model.max_len))]
    found = []
    for cuts in ((), (1, 18, 19, 90, 250)):
        ends = [*(cut for cut in cuts if cut < len(words)), len(words)]
        prompt = Sequence("", len(words), words, Sampling(0), 1, epoch=1, slot=0)
        for start, end in itertools.pairwise((0, *ends)):
            model.run(Step([], Chunk(prompt, start, end - start)))
        found.append(model.logits[0].copy())
    if not np.array_equal(*found):
        raise ValueError("a prompt that is computed in parts does not give the same bits here as a whole one")


def _prepare(folder: Path, of: card.Card, out: Path) -> None:
    for form in dict.fromkeys((Form.MIXED, *Form)):  # first the one that has all the weights
        _save(str(folder / of.graphs[form.value]), of, form, out)
        if form is not Form.MIXED:
            _share(_packed(out, Form.MIXED), _packed(out, form))


def _packed(out: Path, form: Form) -> Path:
    return out / f"{form.value}.bin"


def _save(graph: str | bytes, of: card.Card, form: Form, out: Path, folder: Path | None = None) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(out / of.graphs[form.value])
    for key, value in (
        ("optimized_model_external_initializers_file_name", _packed(out, form).name),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    session(graph, options, folder)


def _share(weights: Path, packed: Path) -> None:
    """One file instead of two, where they say the same."""
    if _begins(weights, packed):
        packed.unlink()
        packed.hardlink_to(weights)


def _begins(longer: Path, shorter: Path) -> bool:
    """Whether a file is the beginning of another: graphs with the same weights are packed the same."""
    size = shorter.stat().st_size
    if longer.stat().st_size < size:
        return False
    with longer.open("rb") as a, shorter.open("rb") as b:
        while part := b.read(1 << 24):
            if a.read(len(part)) != part:
                return False
    return True


def _sample(model: OrtModel) -> npt.NDArray[np.float32]:
    """The logits, or states, of two rows and a chunk, after a prompt: every form of a step has a part."""
    words = [(7 * i) % model.card.vocab for i in range(9)]
    rows = [Sequence(f"{i}", 9, words[i:] + words[:i], Sampling(0), 9, epoch=1, slot=i) for i in range(2)]
    model.run(Step([], Chunk(rows[0], 0, 4)))
    model.run(Step([], Chunk(rows[0], 4, 5)))
    rows[0].computed = 8
    model.run(Step(rows[:1], Chunk(rows[1], 0, 4)))
    rows[1].computed = 4
    model.run(Step(rows, None))
    return (model.states if model.card.pooling else model.logits)[:2].copy()


def machine() -> str:
    """What packed weights depend on: the library, and what the processor can do."""
    found = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features", "cpu family", "model"):
                found.add(f"{key.strip()} {' '.join(sorted(value.split()))}")
    except OSError:
        found.add(repr(os.uname()))
    return f"{ort.__version__} {sorted(found)}"
