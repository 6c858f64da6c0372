"""Where models live: a name or a folder in, what is known of it without loading it out.

find             a shipped model or one of the store by its name, any model by its folder
inside           a file of a model folder; the only way to one
read_json        a JSON object of a model folder
words            what its tokenizer.json says: tokens and their ids
text_settings    what its tokenizer_config.json says
templates        the files of chat templates that have a name
eos_ids          the tokens that end an answer
"""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.context import context
from millrace.settings import SettingError
from millrace.xdg import ours

SHIPPED = (
    Path(__file__).parent.parent / "models",  # a checkout
    Path(sys.prefix) / "share" / "millrace" / "models",  # an installed wheel
)

CARD = "millrace.json"  # in a folder of the engine's own form
GUEST = "guest.json"  # in one that others exported
MODULES = "modules.json"  # in one that makes vectors of texts
TEMPLATES = "additional_chat_templates"  # a folder beside chat_template.jinja

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
"""Of a model in the store: as the Hub names its repositories, with or without whose they are."""


@dataclass(frozen=True)
class Model:
    name: str  # what clients call it
    folder: Path
    config: dict[str, Any]

    @property
    def simulated(self) -> bool:
        return self.config.get("model_type") == "millrace_sim"

    @property
    def converted(self) -> bool:
        """Whether it is in the engine's own form; else it is as the Hub has it."""
        return (self.folder / CARD).is_file()

    @property
    def guest(self) -> bool:
        """Whether others made its graph."""
        return (self.folder / GUEST).is_file()

    @property
    def text(self) -> Path:
        """The folder of its tokenizer: the simulated model borrows one."""
        return self.folder.parent / Path(self.config["tokenizer"]).name if self.simulated else self.folder

    @property
    def vocab(self) -> int:
        """Rows of its table of words; 0 where its configuration does not say."""
        said = self.config.get("vocab_size")
        return said if isinstance(said, int) else 0

    @property
    def vectors(self) -> int:
        """The size of those that it makes of texts; 0: it makes text."""
        size = self.config.get("hidden_size")
        made = (self.folder / MODULES).is_file() and not self.guest
        return size if made and isinstance(size, int) else 0

    @property
    def max_len(self) -> int:
        try:
            # What others exported has tables of angles in its graph, of that length.
            return int(self.config["max_position_embeddings"]) if self.guest else context(self.config)
        except (KeyError, TypeError, ValueError):
            path = self.folder / "config.json"
            raise SettingError(f"{path}: max_position_embeddings, the context's length, is missing") from None


def store_root(given: str = "") -> Path:
    """Where converted models are kept: as the setting `models` says, or in the user's own data."""
    return Path(given).expanduser().absolute() if given else ours("XDG_DATA_HOME") / "models"


def find(name: str, store: str = "") -> Model:
    """A shipped model or one of the store by its name, or any model by its folder."""
    kept = store_root(store)
    roots = (*SHIPPED, kept) if NAME.fullmatch(name) else ()
    for folder in (*(root / name for root in roots), Path(name)):
        if (folder / "config.json").is_file():
            found = folder.resolve()
            try:
                return Model(name_of(found, kept), found, read_json(found, "config.json"))
            except ValueError as error:
                raise SettingError(str(error)) from None
    known = ", ".join([*shipped(), *stored(kept)])
    raise SettingError(f"no model {name!r}: neither one of {known} nor a folder with config.json")


def name_of(folder: Path, kept: Path) -> str:
    """A model of the store has the same name however it is found."""
    root = kept.resolve()
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else folder.name


def shipped() -> list[str]:
    return sorted({path.parent.name for root in SHIPPED for path in root.glob("*/config.json")})


def stored(kept: Path) -> list[str]:
    """By name or org/name. What goes while it is looked for is not there."""
    found = []
    for folder, inner, files in os.walk(kept, followlinks=True):
        name = os.path.relpath(folder, kept)
        if "config.json" in files and NAME.fullmatch(name):
            found.append(name)
        if "/" in name:
            inner.clear()
    return sorted(found)


# -- a model folder's files; their names and contents are data from outside


def inside(folder: Path, name: str) -> Path:
    """A file of a model folder; the name may not lead out of it, nor may a link."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "\0" in name:
        raise ValueError(f"{folder}: unsafe file name {name!r}")
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":  # the Hub's cache keeps a revision as links to its blobs
        allowed.append(root.parent.parent / "blobs")
    path = (root / name).resolve()
    if not any(path.is_relative_to(each) for each in allowed):
        raise ValueError(f"{folder / name}: leads out of its folder")
    return root / name


def read_json(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    path = inside(folder, name)
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: not found") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def words(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The tokens of a tokenizer.json, and their ids."""
    known = tokenizer["model"]["vocab"]
    by_word = known if isinstance(known, dict) else {word[0]: id for id, word in enumerate(known)}
    return by_word | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def text_settings(folder: Path) -> dict[str, Any]:
    """Of a tokenizer. An older folder may have a file for its special tokens, which then counts."""
    said = read_json(folder, "tokenizer_config.json")
    if "added_tokens_decoder" in said:
        return said
    return said | read_json(folder, "special_tokens_map.json", optional=True)


def templates(folder: Path) -> list[str]:
    found = inside(folder, TEMPLATES).glob("*.jinja")
    return sorted(f"{TEMPLATES}/{path.name}" for path in found)


def eos_ids(folder: Path, id_of: Callable[[str], int | None]) -> frozenset[int]:
    """What ends an answer: the tokenizer's word for it, and the ids that generation is configured with."""
    generation = read_json(folder, "generation_config.json", optional=True)
    model = read_json(folder, "config.json", optional=True)
    given = generation.get("eos_token_id", model.get("eos_token_id"))
    ids = {id for id in (given if isinstance(given, list) else [given]) if id is not None}
    word = text_settings(folder).get("eos_token")
    named = id_of(str(word["content"] if isinstance(word, dict) else word)) if word else None
    return frozenset(ids if named is None else ids | {named})
