"""Models that others exported to ONNX come into the store, and the engine runs them as its guests.

    form       how a graph is to be called, by its inputs and outputs
    caches     its keys and values, and a run
    probe      what has to be tried out: memory shared in place, batches, exactness

Nothing of a folder from outside is believed: ONNX Runtime sees a graph only after every file that it names
was found inside of the folder, and it sees a copy.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx

from millrace import models
from millrace.guest import caches, form
from millrace.guest.form import Card
from millrace.guest.probe import try_out

GRAPH = "graph.onnx"
GENAI = "genai_config.json"
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "LICENSE",
)
LARGEST = 2 << 30
"""Bytes of a graph's own file: protobuf's limit."""

Progress = Callable[[int, int, str], object]


def take(
    folder: Path, out: Path, graph: str = "", progress: Progress = lambda done, total, what: None
) -> Card:
    """Copy a model into a new folder, ready to be served; ValueError says why it cannot be."""
    name = graph or _graph(folder)
    config = _config(folder)
    for needed in BESIDE[:2]:
        if not models.inside(folder, needed).is_file():
            raise ValueError(f"{folder} has no {needed}")
    data = external(folder, name)
    out.mkdir()
    files = {GRAPH: models.inside(folder, name)} | data
    beside = (*BESIDE, *models.templates(folder))
    files |= {each: path for each in beside if (path := models.inside(folder, each)).is_file()}
    total, done = sum(path.stat().st_size for path in files.values()), 0
    for to, path in files.items():
        progress(done, total, to)
        (out / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / to)
        done += path.stat().st_size
    progress(total, total, "trying it out")
    (out / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
    run = caches.opened(out / GRAPH, len(os.sched_getaffinity(0)), quiet=True)
    known = form.recognise(caches.puts(run.get_inputs()), caches.puts(run.get_outputs()))
    found = try_out(run, known)
    card = Card(
        version=form.VERSION,
        graph=GRAPH,
        form=known,
        vocab=found.vocab,
        in_place=found.in_place,
        batch=found.batch,
        company=found.company,
        resumed=found.resumed,
        digest=_digest([out / each for each in (GRAPH, *sorted(data))]),
    )
    _agree(out, card.vocab)
    (out / form.NAME).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2))
    return card


def _digest(paths: list[Path]) -> str:
    known = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            known.update(hashlib.file_digest(file, "sha256").digest())
    return known.hexdigest()


def _agree(folder: Path, vocab: int) -> None:
    from tokenizers import Tokenizer  # noqa: PLC0415 - a second of start-up that only an import pays

    path = folder / "tokenizer.json"
    try:
        words = Tokenizer.from_file(str(path)).get_vocab_size()
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"{path.name}: {error}") from None
    if words > vocab:
        raise ValueError(f"{path.name} has {words} words, and the graph {vocab}: they are not of one model")


def _graph(folder: Path) -> str:
    """The only graph of the folder, or the one that its own configuration means."""
    decoder = _decoder(folder)
    if isinstance(named := decoder.get("filename"), str):
        return named
    found = sorted(
        str(path.relative_to(folder)) for at in (".", "onnx") for path in folder.glob(f"{at}/*.onnx")
    )
    if len(found) != 1:
        many = f"{len(found)} graphs ({', '.join(found)}): choose one with --graph" if found else "no graph"
        raise ValueError(f"{folder} has {many}")
    return found[0]


def _decoder(folder: Path) -> dict[str, Any]:
    decoder = _genai(folder).get("decoder")
    return decoder if isinstance(decoder, dict) else {}


def _genai(folder: Path) -> dict[str, Any]:
    model = models.read_json(folder, GENAI, optional=True).get("model")
    return model if isinstance(model, dict) else {}


def _config(folder: Path) -> dict[str, Any]:
    """What the services read of a model; onnxruntime-genai has it in words of its own."""
    config, genai = models.read_json(folder, "config.json", optional=True), _genai(folder)
    length = config.get("max_position_embeddings") or genai.get("context_length")
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"{folder}: neither config.json nor {GENAI} tells the length of the context")
    ends = config.get("eos_token_id", genai.get("eos_token_id"))
    return {**config, "max_position_embeddings": length, "eos_token_id": ends}


def external(folder: Path, graph: str) -> dict[str, Path]:
    """The files that a graph's weights lie in, by the names it has for them; all are inside the folder."""
    path = models.inside(folder, graph)
    if not path.is_file():
        raise ValueError(f"{path}: not found")
    if path.stat().st_size >= LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: a graph has less than {LARGEST}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's kinds
        raise ValueError(f"{path}: not an ONNX graph ({error})") from None
    files: dict[str, Path] = {}
    beside = Path(graph).parent
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {each.key: each.value for each in tensor.external_data}
        location = told.get("location", "")
        files[location] = models.inside(folder, str(beside / location))
        if location in (GRAPH, *BESIDE, form.NAME, "config.json", "manifest.json"):
            raise ValueError(f"{path}: its weights cannot be in a file named {location}")
        if not files[location].is_file():
            raise ValueError(f"{path}: its weights' file {location} is missing")
        try:
            begin, length = int(told.get("offset") or 0), int(told.get("length") or 0)
        except ValueError:
            raise ValueError(f"{path}: the place of {tensor.name} is not a number") from None
        size = files[location].stat().st_size
        if begin < 0 or length < 0 or begin + length > size:
            raise ValueError(
                f"{path}: {tensor.name} does not lie in {location}, which has {size} bytes (truncated?)"
            )
    return files


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All of them: initialisers, constants, and those of graphs within."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        graphs = []
        for node in nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                graphs += (
                    [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else []
                )
        nodes = []
