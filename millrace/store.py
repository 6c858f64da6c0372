"""The store of models: folders under their names, each with the digests of its files.

    <root>/<name>/          name, or org/name as the Hub has it
        manifest.json       where it comes from, and every file's size and SHA-256
        config.json, ...    the model

What is in the store came in whole, and goes out whole.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from millrace import __version__, models, whole

MANIFEST = "manifest.json"
PIECE = 1 << 22

Progress = Callable[[int, int, str], object]  # bytes done, of how many, in which file


class File(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    source: str  # a folder, or hub:org/name@commit
    made: str  # when, in UTC
    by: str  # the version that made it
    files: dict[str, File]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may be served by its name."""

    name: str
    kind: str  # shipped, stored, or a folder
    form: str  # what the engine will find there
    bytes: int
    context: int
    made: str
    source: str
    folder: str


@contextlib.contextmanager
def adding(
    root: Path, name: str, source: str, waiting: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """A path to make a model at; at the end of the block it is in the store, with its manifest. While another
    process adds the same, this one waits, after a word to `waiting`."""
    check_free(root, name)
    with whole.making(root / name, waiting) as made:
        yield made
        manifest = Manifest(
            source=source,
            made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            by=f"millrace {__version__}",
            files={str(path.relative_to(made)): digest(path) for path in _files(made)},
        )
        (made / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_free(root: Path, name: str) -> None:
    """Before any work: ValueError unless a model may be added under this name."""
    if not models.NAME.fullmatch(name) or name.endswith(whole.SUFFIX):
        raise ValueError(f"{name!r} cannot be a model's name: letters, digits, '-', '_', '.', and one '/'")
    if name in models.shipped():
        raise ValueError(f"{name!r} is the name of a shipped model; choose another with --name")
    if (root / name).exists():
        raise ValueError(f"{name!r} is in the store already; `millrace model rm {name}` removes it")
    if "/" in name and (root / name.partition("/")[0] / "config.json").exists():
        raise ValueError(f"{name.partition('/')[0]!r} is a model in the store; choose another with --name")


def digest(path: Path, tell: Callable[[int], object] = lambda size: None) -> File:
    known, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            known.update(piece)
            size += len(piece)
            tell(len(piece))
    return File(size, known.hexdigest())


def manifest(folder: Path) -> Manifest | None:
    """None where there is none; ValueError if it is not one."""
    try:
        return msgspec.json.decode(models.inside(folder, MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(f"{folder / MANIFEST}: {error}") from None


def verify(folder: Path, progress: Progress = lambda done, total, what: None) -> list[str]:
    """What is wrong with a model's files, a line for each; none if all are as they were made."""
    known = manifest(folder)
    if known is None:
        raise ValueError(f"{folder} has no {MANIFEST}: nothing is known of its files")
    wrong, done, total = [], 0, sum(file.size for file in known.files.values())

    def tell(size: int) -> None:
        nonlocal done
        done += size
        progress(min(done, total), total, name)

    for name, expected in known.files.items():
        path = models.inside(folder, name)
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif (size := path.stat().st_size) != expected.size:
            wrong.append(f"{name}: {size} bytes, not {expected.size}")
        elif (found := digest(path, tell)) != expected:
            wrong.append(f"{name}: its SHA-256 is {found.sha256}, not {expected.sha256}")
    there = {str(path.relative_to(folder)) for path in _files(folder)} - {MANIFEST}
    return wrong + [f"{name}: not a file of this model" for name in sorted(there - known.files.keys())]


def remove(root: Path, name: str) -> None:
    """ValueError if it is not in the store."""
    if name not in models.stored(root):
        what = "is a shipped model" if name in models.shipped() else "is not in the store"
        raise ValueError(f"{name!r} {what}: there is nothing to remove")
    whole.remove(root / name)
    if "/" in name:
        with contextlib.suppress(OSError):  # another model of theirs is there
            (root / name).parent.rmdir()


def entries(root: Path) -> list[Entry]:
    """All that `millrace up --model` takes by name; one that is broken is listed as such."""
    found = []
    for name in [*models.shipped(), *models.stored(root)]:
        try:
            found.append(entry(name, root))
        except ValueError:  # its config.json is not one: `_entry` says so
            found.append(_entry(models.Model(name, (root / name).resolve(), {}), root))
    return found


def entry(name: str, root: Path) -> Entry:
    return _entry(models.find(name, str(root)), root)


def _entry(model: models.Model, root: Path) -> Entry:
    known, context = None, 0
    try:
        known = manifest(model.folder)
        form, context = form_of(model), model.max_len
    except ValueError as error:
        form = f"broken: {error}"
    return Entry(
        name=model.name,
        kind=_kind(model, root),
        form=form,
        bytes=sum(path.stat().st_size for path in _files(model.folder)),
        context=context,
        made=known.made if known else "",
        source=known.source if known else "",
        folder=str(model.folder),
    )


def _kind(model: models.Model, root: Path) -> str:
    if model.folder.is_relative_to(root.resolve()):
        return "stored"
    return "shipped" if model.folder.parent in [path.resolve() for path in models.SHIPPED] else "folder"


def form_of(model: models.Model) -> str:
    """What is in a model's folder, in a few words."""
    if model.simulated:
        return "simulated"
    if model.guest:
        form = models.read_json(model.folder, models.GUEST)
        return f"guest, {'in place' if form.get('in_place') else 'grown'}"
    if not model.converted:
        return "safetensors"
    card = models.read_json(model.folder, models.CARD)
    return f"{card.get('quant')}, cache {card.get('cache')}"
