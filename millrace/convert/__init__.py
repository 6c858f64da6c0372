"""A Hugging Face folder becomes a model folder of ours: graphs, one file of weights, and a card.

    safetensors     the weights, tensor by tensor
    architecture    what config.json says, in our words; the families
    forward         a model over a text, layer by layer
    calibrate       what each layer is computed with, by what it does with the text
    quality         how far the result is from the original
    packed          weights that came in 4 bits
    computable      a GPU's graph, where there is none
    network         the graph, over
    linear, graph   linear layers in each arithmetic; writing ONNX
    card            what the engine has to know

Nothing of it is half made: the folder is written beside its place and renamed at the end.
"""

import hashlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from millrace import pooling, whole
from millrace.convert import architecture, calibrate, card, packed, quality, text
from millrace.convert.architecture import Architecture
from millrace.convert.card import Cache, Card, Device, Quant
from millrace.convert.forward import Exact, Planned
from millrace.convert.graph import BFLOAT16, Graph, Store, own
from millrace.convert.linear import OF_GPU
from millrace.convert.network import CANDIDATES, Form, Network, Plan
from millrace.convert.packed import Packed
from millrace.convert.quality import Quality
from millrace.convert.safetensors import Weights
from millrace.models import inside, read_json, templates

Progress = Callable[[int, int, str], object]  # steps done, of how many, what is done now


class Poor(ValueError):
    """The converted model is too far from its original; it was not kept."""

    def __init__(self, found: Quality, faults: list[str]):
        self.quality = found
        why = "; ".join(faults)
        super().__init__(f"the result is not good: {why}; `millrace model convert --accept` keeps it")


BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    text.CALIBRATION,
    "LICENSE",
)
"""Files that the other parts of the service read, or that must travel with the weights."""

DATA = "weights.bin"

CACHES: dict[Device, dict[Quant, tuple[Cache, ...]]] = {
    "cpu": dict.fromkeys(("int8", "int4", "fp32"), ("int8", "fp32")),
    "cuda": {**dict.fromkeys(("fp16", "int8", "int4"), ("fp16",)), "bf16": ("bf16",)},
}
"""What keys and values may be in beside weights of each quantisation; the first where none is asked for."""


def convert(
    folder: Path,
    out: Path,
    quant: Quant | None = None,
    progress: Progress = lambda done, total, what: None,
    *,
    cache: Cache | None = None,
    max_len: int = 0,
    words: str | None = None,
    accept: bool = False,
    device: Device = "cpu",
) -> Path:
    """Convert a model; ValueError if it cannot be done, and then `out` does not exist.

    A result that is far from the original is such an error, unless it is accepted as it is. It is chosen by,
    and measured on, the text `words`; without one, the folder's own, or ours. Weights that are in 4 bits
    already stay as they are, unless another `quant` is asked for. For CUDA weights have 16 bits where no
    `quant` is asked for, and keys and values always: bfloat16 where weights are to have it, else fp16.
    """
    if device not in get_args(Device):
        raise ValueError(f"device {device!r} is not known: it is cpu or cuda")
    quant = quant or usual(folder, device)
    cache = _cache(quant, cache, device)
    if out.exists():
        raise ValueError(f"{out} exists already")
    a = read_architecture(folder, max_len)
    weights = packed.opened(folder)
    if not (a.tied or a.vectors) and "lm_head.weight" not in weights:
        raise ValueError(f"{folder}: the tensor lm_head.weight is missing, and the heads are not tied")
    with whole.making(out) as made:
        made.mkdir()
        found = _write(folder, made, a, weights, quant, cache, device, words, progress)
        if (faults := found.faults(quant)) and not accept:
            raise Poor(found, faults)
    return out


def usual(folder: Path, device: Device = "cpu") -> Quant:
    """The quantisation of a folder where none is asked for."""
    return "int4" if packed.form_of(folder) else "fp16" if device == "cuda" else "int8"


def _cache(quant: Quant, cache: Cache | None, device: Device) -> Cache:
    """What keys and values are to be in; ValueError if a device has not what is asked for."""
    known = CACHES[device]
    if quant in known and (cache or known[quant][0]) in known[quant]:
        return cache or known[quant][0]
    asked = f"quantisation {quant!r}" + (f" with a cache of {cache!r}" if cache else "")
    there = ", ".join(f"{one} with a cache of {' or '.join(caches)}" for one, caches in known.items())
    elsewhere = [f"; {quant} is for --device {other}" for other, of in CACHES.items() if quant in of]
    raise ValueError(
        f"{asked} is not known on {device}: there are {there}{'' if quant in known else ''.join(elsewhere)}"
    )


def read_architecture(folder: Path, max_len: int = 0) -> Architecture:
    return architecture.read(
        read_json(folder, "config.json"), max_len, vectors=pooling.read(folder) is not None
    )


def _write(
    folder: Path,
    out: Path,
    a: Architecture,
    weights: Weights,
    quant: Quant,
    cache: Cache,
    device: Device,
    words: str | None,
    progress: Progress,
) -> Quality:
    total = len(a.layers) + 1 + len(Form)
    steps = itertools.count()

    def step(what: str) -> None:
        progress(next(steps), total, what)

    texts = text.halves(folder, text.of(folder) if words is None else words, a)
    half = (BFLOAT16 if cache == "bf16" else np.float16) if device == "cuda" else None
    plan = Plan(OF_GPU[quant] if half else quant, half=half)
    if quant == "int4" and isinstance(weights, Packed):
        # What is not in 4 bits had its reasons.
        plan = Plan("fp16" if half else "int8", packed=True, half=half)
    digests = []
    graphs = {}
    packed_bytes = 0
    with Store(out / DATA) as store:
        found = _plan(a, weights, plan, cache, texts, store, step)
        for form in Form:
            step(f"writing {form.value}")
            graph = Graph(form.value, store)
            Network(graph, a, weights, plan).build(form)
            graphs[form.value] = f"{form.value}.onnx"
            model = graph.model()
            packed_bytes = max(packed_bytes, sum(own(model.graph).values()))
            content = model.SerializeToString(deterministic=True)
            (out / graphs[form.value]).write_bytes(content)
            digests.append(hashlib.sha256(content).hexdigest())
        digests.append(store.digest)
    for name in (*BESIDE, *templates(folder), *pooling.files(folder)):
        if (path := inside(folder, name)).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
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
        candidates=0 if a.vectors else min(CANDIDATES, a.vocab),
        graphs=graphs,
        data=DATA,
        scales=[(float(s.keys.max()), float(s.values.max())) for s in plan.scales],
        kernels=plan.kernels,
        smoothed=sorted(plan.smooth),
        quality=found,
        device=device,
        own=packed_bytes if half else 0,
        pooling=pooling.read(folder),
        source=str(folder.resolve()),
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )
    (out / card.NAME).write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2))
    progress(total, total, "done")
    return found


def _plan(
    a: Architecture,
    weights: Weights,
    plan: Plan,
    cache: Cache,
    texts: tuple[list[int], list[int]],
    store: Store,
    step: Callable[[str], object],
) -> Quality:
    """Fill the plan by one text; measure by another what has come of it."""
    scratch = store.path.with_name("scratch")
    exact = Exact(a, weights, texts, scratch)
    ours = Planned(a, weights, plan, texts[1:], store)
    for i in range(len(a.layers)):
        step(f"layer {i + 1} of {len(a.layers)}")
        calibrate.layer(a, plan, i, exact.layer(i)[0], cache=cache == "int8")
        ours.layer(i)
    step("the head")
    head, (read, other) = exact.head()
    if a.vectors:
        found = quality.likeness(ours.states(0), other)
    else:
        calibrate.arithmetic(a, plan, head, read)
        found = quality.measure(texts[1], ours.logits(0), exact.logits(other))
    scratch.unlink()
    return found
