"""How good a converted model is on a text: as the engine runs it, beside its original if that is there."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from millrace.convert import card, computable, packed, quality, read_architecture, text
from millrace.convert.card import Card
from millrace.convert.forward import Exact, Floats, portions
from millrace.convert.quality import Quality
from millrace.convert.runtime import ort, session

LONGEST = 2048  # tokens of a text; more would take long and say little more


def evaluate(
    folder: Path,
    words: str | None = None,
    source: Path | None = None,
    progress: Callable[[int, int, str], object] = lambda done, total, what: None,
) -> Quality:
    """On a text, or on the one that conversions are measured on. `source`: the original; without one the
    folder that the model was made from, if it is still there."""
    made = card.load(folder)
    if source is None and made.source and (Path(made.source) / "config.json").is_file():
        source = Path(made.source)
    a = read_architecture(source or folder, made.max_len)
    if words is None:
        tokens = text.halves(folder, text.of(folder), a)[1]
    else:
        begin, ids = text.tokens(folder, words, made.vocab)
        tokens = [*begin, *ids][: min(LONGEST, made.max_len)]
    with tempfile.TemporaryDirectory() as scratch:
        original = None
        if source:
            exact = Exact(a, packed.opened(source), (tokens,), Path(scratch) / "layer")
            for i in range(made.layers):
                progress(i, made.layers, f"layer {i + 1} of {made.layers} in fp32")
                exact.layer(i)
            progress(made.layers, made.layers, "the head")
            read = exact.head()[1][0]
            if made.pooling:
                return quality.likeness(np.concatenate(list(found(folder, made, tokens))), read)
            original = exact.logits(read)
        elif made.pooling:
            raise ValueError(f"{folder} makes vectors: only beside its original can they be measured")
        return quality.measure(tokens, found(folder, made, tokens), original)


def found(folder: Path, made: Card, tokens: list[int]) -> Iterator[Floats]:
    """Logits, or states, after each token, some tokens at a time, from the graph that the engine computes
    prompts with."""
    graph = opened(folder, made)
    names = [f"chunk.{kv}.{i}" for i in range(made.layers) for kv in "kv"]
    shape = (1, made.kv_heads, len(tokens), made.head_dim)
    past = {name: np.zeros(shape, made.cache_kind) for name in names}
    for rows in portions(made.vocab, len(tokens)):
        some = np.array(tokens[rows], np.int64)
        end = rows.start + len(some)
        said, *present = computable.run(
            graph,
            ["states" if made.pooling else "logits", *(f"{name}.out" for name in names)],
            {
                "tokens": some,
                "wanted": np.arange(len(some), dtype=np.int64),
                "chunk.before": np.array([end - 1], np.int32),
                "chunk.longest": np.array(end, np.int32),
                **past,
            },
        )
        past = dict(zip(names, present, strict=True))
        yield said


def opened(folder: Path, made: Card) -> ort.InferenceSession:
    path = folder / made.graphs["chunk"]
    return computable.opened(path) if made.device == "cuda" else session(str(path))
