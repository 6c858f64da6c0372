"""A Hugging Face folder becomes a model folder of ours: graphs, one file of weights, and a card.

    safetensors     the weights, tensor by tensor
    architecture    what config.json says, in our words; the families
    calibrate       the scales of an 8-bit key-value cache, from a text
    network         the graph, over
    linear, graph   linear layers in each arithmetic; writing ONNX
    card            what the engine has to know

Nothing of it is half made: the folder is written beside its place and renamed at the end.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from millrace import whole
from millrace.convert import architecture, calibrate, card
from millrace.convert.architecture import Architecture
from millrace.convert.card import Cache, Card, Quant
from millrace.convert.graph import Graph, Store
from millrace.convert.network import CANDIDATES, Form, Network, Plan, Scales
from millrace.convert.safetensors import Weights
from millrace.convert.text import TEXT
from millrace.models import inside, read_json

Progress = Callable[[int, int, str], object]  # steps done, of how many, what is done now

BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
)
"""Files that the other parts of the service read, or that must travel with the weights."""

CALIBRATION_TOKENS = 512
DATA = "weights.bin"


def convert(
    folder: Path,
    out: Path,
    quant: Quant = "int8",
    progress: Progress = lambda done, total, what: None,
    *,
    cache: Cache = "int8",
    max_len: int = 0,
    text: str = TEXT,
) -> Path:
    """Convert a model; ValueError if it cannot be done, and then `out` does not exist."""
    if quant not in get_args(Quant) or cache not in get_args(Cache):
        raise ValueError(f"quantisation {quant!r} with a cache of {cache!r} is not known")
    if out.exists():
        raise ValueError(f"{out} exists already")
    a = read_architecture(folder, max_len)
    weights = Weights(folder)
    if not a.tied and "lm_head.weight" not in weights:
        raise ValueError(f"{folder}: the tensor lm_head.weight is missing, and the heads are not tied")
    with whole.making(out) as made:
        made.mkdir()
        _write(folder, made, a, weights, quant, cache, text, progress)
    return out


def read_architecture(folder: Path, max_len: int = 0) -> Architecture:
    return architecture.read(read_json(folder, "config.json"), max_len)


def _write(
    folder: Path,
    out: Path,
    a: Architecture,
    weights: Weights,
    quant: Quant,
    cache: Cache,
    text: str,
    progress: Progress,
) -> None:
    total = len(a.layers) * (len(Form) + (cache == "int8"))
    done = 0

    def step(what: str) -> None:
        nonlocal done
        progress(done, total, what)
        done += 1

    scales: list[Scales] = []
    if cache == "int8":
        scales = calibrate.scales(a, weights, tokens_of(folder, text, a.vocab), step)
    plan = Plan(lambda name: quant, scales)
    digests = []
    graphs = {}
    with Store(out / DATA) as store:
        for form in Form:
            graph = Graph(form.value, store)
            Network(graph, a, weights, plan).build(form, step)
            graphs[form.value] = f"{form.value}.onnx"
            content = graph.model().SerializeToString(deterministic=True)
            (out / graphs[form.value]).write_bytes(content)
            digests.append(hashlib.sha256(content).hexdigest())
        digests.append(store.digest)
    for name in BESIDE:
        if (path := inside(folder, name)).is_file():
            shutil.copyfile(path, out / name)
    made = Card(
        version=card.VERSION,
        family=a.family,
        quant=quant,
        cache=cache,
        layers=len(a.layers),
        heads=a.heads,
        kv_heads=a.kv_heads,
        head_dim=a.head_dim,
        hidden=a.hidden,
        vocab=a.vocab,
        max_len=a.max_len,
        candidates=min(CANDIDATES, a.vocab),
        graphs=graphs,
        data=DATA,
        scales=[(float(s.keys.max()), float(s.values.max())) for s in scales],
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )
    (out / card.NAME).write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2))
    progress(total, total, "done")


def tokens_of(folder: Path, text: str, vocab: int) -> list[int]:
    """The text as the model reads it. A folder without a tokenizer is not for use: any tokens will do."""
    path = inside(folder, "tokenizer.json")
    if not path.is_file():
        drawn: list[int] = np.random.default_rng(0).integers(0, vocab, CALIBRATION_TOKENS).tolist()
        return drawn
    from tokenizers import Tokenizer  # noqa: PLC0415 - a second of start-up that only a conversion pays

    try:
        ids: list[int] = Tokenizer.from_file(str(path)).encode(text).ids
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"{path}: {error}") from None
    return [min(i, vocab - 1) for i in ids[:CALIBRATION_TOKENS]]
