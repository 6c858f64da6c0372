"""How a model makes one vector of a text, as sentence-transformers writes it beside the weights.

    modules.json              what follows on what: the transformer, the pooling, perhaps a norm
    1_Pooling/config.json     of which tokens' states the vector is made
    sentence_bert_config.json how many tokens of a text, where it is fewer than the model can

What a folder says and cannot be done here is a ValueError that names it.
"""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from millrace.models import MODULES, inside, read_json

SETTINGS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"
KINDS = ["Transformer", "Pooling", "Normalize"]

MODES: dict[str, Literal["last", "mean"]] = {"lasttoken": "last", "mean": "mean"}
FLAGS = {"pooling_mode_lasttoken": "lasttoken", "pooling_mode_mean_tokens": "mean"}
"""Of the older form, which has a flag for each mode; the newer one names it."""


class Pooling(msgspec.Struct, frozen=True):
    mode: Literal["last", "mean"]  # the state of the last token, or the mean of all
    unit: bool  # whether the vector is given the length one


def read(folder: Path) -> Pooling | None:
    """None if the model makes text."""
    if not (path := inside(folder, MODULES)).is_file():
        return None
    modules = _modules(path)
    kinds = [_kind(module) for module in modules]
    if kinds not in (KINDS, KINDS[:-1]):
        raise ValueError(f"{path}: {' -> '.join(kinds)} is not supported: it is {' -> '.join(KINDS)}")
    prompt = read_json(folder, SETTINGS, optional=True).get("default_prompt_name")
    if prompt:
        raise ValueError(f"{folder / SETTINGS}: the default prompt {prompt!r} is not supported")
    name = _file(modules[1])
    return Pooling(_mode(folder / name, read_json(folder, name)), kinds == KINDS)


def files(folder: Path) -> list[str]:
    """The names of those that say so."""
    if not (path := inside(folder, MODULES)).is_file():
        return []
    return [MODULES, SETTINGS, LENGTH, *(_file(module) for module in _modules(path) if module.get("path"))]


def most(folder: Path) -> int | None:
    """How many tokens a text may have to become a vector; None: as many as the model can."""
    if not inside(folder, MODULES).is_file():
        return None
    length = read_json(folder, LENGTH, optional=True).get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise ValueError(f"{folder / LENGTH}: max_seq_length is {length!r}, which is no number of tokens")
    return length


def _file(module: dict[str, Any]) -> str:
    return f"{module.get('path', '')}/config.json"


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"{path}: not a list of modules")
    if not all(isinstance(module.get("path", ""), str) for module in modules):
        raise ValueError(f"{path}: a module's path is not a text")
    return modules


def _kind(module: dict[str, Any]) -> str:
    """Where its class lies has changed; its name has not."""
    return str(module.get("type")).rpartition(".")[2]


def _mode(path: Path, config: dict[str, Any]) -> Literal["last", "mean"]:
    named = config.get("pooling_mode")
    modes = [named] if named else [FLAGS.get(flag, flag) for flag, set_ in config.items() if _is(flag, set_)]
    if len(modes) != 1 or modes[0] not in MODES:
        said = "+".join(map(str, modes)) or "no mode"
        raise ValueError(f"{path}: pooling by {said} is not supported: it is by {' or '.join(MODES)}")
    return MODES[modes[0]]


def _is(flag: str, value: Any) -> bool:
    return flag.startswith("pooling_mode_") and value is True
