"""Models that others exported: told by their inputs and outputs, checked before they run, and right."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from millrace import guest
from millrace.guest import caches
from millrace.guest.form import Put, recognise
from millrace.messages import Sampling
from services.engine.choice.sample import choose
from services.engine.model.guest import GuestModel, best
from services.engine.steps.scheduler import Scheduler
from services.engine.steps.sequence import Sequence
from tests.kit import reference
from tests.kit.checkpoint import random_tensors
from tests.kit.exports import Export, genai, optimum
from tests.kit.models import small

CONFIG = small("Llama", vocab_size=4096, max_position_embeddings=64, num_hidden_layers=2)

Write = Callable[..., Path]

FORMS: dict[str, tuple[Write, dict[str, Any], tuple[bool, bool]]] = {
    "genai": (genai, {"positions": False}, (True, True)),
    "genai with positions": (genai, {"positions": True}, (True, True)),
    "optimum": (optimum, {}, (False, True)),
    "optimum without positions": (optimum, {"positions": False}, (False, False)),
    "optimum with num_logits_to_keep": (optimum, {"keep": True}, (False, True)),
    "optimum, merged": (optimum, {"branch": True}, (False, True)),
    "optimum in 16 bits": (optimum, {"half": True}, (False, True)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_guest_computes_what_the_reference_does(tmp_path: Path, name: str) -> None:
    """Every form, through the real scheduler: prompts in chunks, ragged batches, joins, drops and swaps."""
    write, how, (in_place, batch) = FORMS[name]
    card = guest.take(write(tmp_path / "theirs", CONFIG, **how), tmp_path / "ours")
    assert (in_place, batch) == (card.in_place, card.batch)

    model, scheduler, rng = GuestModel(tmp_path / "ours", 4, 64), Scheduler(4, 5), random.Random(3)
    coming = [
        Sequence(
            f"{i}", n, [rng.randrange(4096) for _ in range(n)], Sampling(i), rng.randrange(2, 14), epoch=1
        )
        for i, n in enumerate([1, 3, 9, 17, 2, 30, 8, 1])
    ]
    everyone = list(coming)
    seen: dict[tuple[str, int], Any] = {}
    swaps = widest = 0
    while True:
        if coming and rng.random() < 0.3:
            scheduler.add(coming.pop(0))
        if len(seen) == 20:
            scheduler.drop(scheduler.running[0].request)
        step = scheduler.schedule()
        if step is None:
            if not coming:
                break
            continue
        swaps, widest = swaps + len(step.swaps), max(widest, len(step.rows))
        found = model.run(step)
        for row, sequence in enumerate(step.samples):
            seen[sequence.request, len(sequence.tokens) - 1] = found.full()[row].copy()
        scheduler.postprocess(step, choose(found, step.samples) if step.samples else [])
    assert swaps and widest > 2

    tensors = random_tensors(CONFIG)
    for sequence in everyone:
        expected = reference.logits(CONFIG, tensors, sequence.tokens)
        for (request, at), logits in seen.items():
            if request == sequence.request:
                error = np.abs(logits - expected[at]).max() / np.abs(expected[at]).max()
                assert error < (5e-3 if how.get("half") else 2e-5), (request, at)


def test_exactness_is_said_as_it_was_seen(tmp_path: Path) -> None:
    """Of rows that are run alone nothing is said but that; a decoded word is not a prefilled one."""
    alone = guest.take(optimum(tmp_path / "a", CONFIG, positions=False), tmp_path / "one by one")
    ragged = guest.take(optimum(tmp_path / "b", CONFIG), tmp_path / "padded")

    assert "one by one" in alone.exactness[0]
    assert ragged.company > 0 and "not batch-invariant" in ragged.exactness[0]
    assert ragged.resumed > 0 and "may say something else" in ragged.exactness[1]


def rewrite(change: Callable[[onnx.TensorProto], object]) -> Callable[[Path], object]:
    """Another place of the first weight that lies outside of the graph's file."""

    def act(folder: Path) -> None:
        path = folder / "onnx" / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        change(next(each for each in model.graph.initializer if each.external_data))
        onnx.save(model, path)

    return act


def moved(key: str, value: str) -> Callable[[Path], object]:
    def act(tensor: onnx.TensorProto) -> None:
        next(each for each in tensor.external_data if each.key == key).value = value

    return rewrite(act)


def hidden(folder: Path) -> None:
    """Among the constants of a branch, where a look at the initialisers alone does not find it."""
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = onnx.TensorProto(name="x", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["x"], value=tensor)], "b", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], [], then_branch=branch, else_branch=branch))
    onnx.save(model, path)


def link(folder: Path) -> None:
    data = folder / "onnx" / "model.onnx_data"
    data.rename(folder.parent / "secret")
    data.symlink_to(folder.parent / "secret")


def unlink(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def second(folder: Path) -> None:
    (folder / "onnx" / "other.onnx").write_bytes((folder / "onnx" / "model.onnx").read_bytes())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (moved("location", "../secret"), r"unsafe file name 'onnx/../secret'"),
        (moved("location", "/etc/passwd"), r"unsafe file name '/etc/passwd'"),
        (moved("location", "..\\secret"), "unsafe file name"),
        (moved("location", ""), "is missing"),
        (moved("location", "nothing"), "nothing is missing"),
        (moved("location", "tokenizer.json"), "cannot be in a file named tokenizer.json"),
        (moved("offset", "-1"), "does not lie in"),
        (moved("offset", "x"), "not a number"),
        (moved("length", str(1 << 40)), "truncated"),
        (hidden, "unsafe file name"),
        (link, "leads out of its folder"),
        (lambda folder: os.truncate(folder / "onnx" / "model.onnx_data", 5000), "truncated"),
        (unlink("onnx/model.onnx"), "no graph"),
        (unlink("onnx/model.onnx_data"), "model.onnx_data is missing"),
        (unlink("tokenizer.json"), "no tokenizer.json"),
        (unlink("config.json"), "the length of the context"),
        (second, "2 graphs .onnx/model.onnx, onnx/other.onnx.: choose one with --graph"),
        (lambda folder: (folder / "onnx" / "model.onnx").write_bytes(b"\xff"), "not an ONNX graph"),
    ],
)
def test_an_unsafe_folder_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], says: str
) -> None:
    """What is wrong is found and named before ONNX Runtime sees the graph."""
    folder = optimum(tmp_path / "theirs", CONFIG)
    damage(folder)
    monkeypatch.setattr(caches, "opened", lambda *_, **__: pytest.fail("ONNX Runtime saw it"))
    with pytest.raises(ValueError, match=says):
        guest.take(folder, tmp_path / "ours")


def test_the_hubs_own_cache_is_links_to_its_blobs(tmp_path: Path) -> None:
    """A revision there is a folder of links; what leaves the cache is refused as ever."""
    repo = tmp_path / "models--org--small"
    folder = optimum(repo / "snapshots" / "0123", CONFIG)
    (repo / "blobs").mkdir()
    for i, path in enumerate(each for each in folder.rglob("*") if each.is_file()):
        path.rename(repo / "blobs" / f"{i}")
        path.symlink_to(os.path.relpath(repo / "blobs" / f"{i}", path.parent))
    guest.take(folder, tmp_path / "ours")
    assert not any(path.is_symlink() for path in (tmp_path / "ours").iterdir())

    data = folder / "onnx" / "model.onnx_data"
    data.resolve().rename(tmp_path / "secret")
    data.unlink()
    data.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="leads out of its folder"):
        guest.take(folder, tmp_path / "others")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """One of its words would be none of the graph's."""
    folder = optimum(tmp_path / "theirs", {**CONFIG, "vocab_size": 331})
    with pytest.raises(ValueError, match=r"has 4096 words, and the graph 331"):
        guest.take(folder, tmp_path / "ours")


def test_a_graph_that_forgets_is_refused(tmp_path: Path) -> None:
    """Its logits, word by word, are not those of all words at once."""
    folder = optimum(tmp_path / "theirs", CONFIG, data="")
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    node = next(node for node in model.graph.node if "present.1.key" in node.output)
    zero = onnx.helper.make_node("Sub", ["past_key_values.1.key"] * 2, ["forgotten"])
    node.input[0] = "forgotten"
    model.graph.node.insert(0, zero)
    onnx.save(model, path)
    with pytest.raises(ValueError, match="does not go on where it was"):
        guest.take(folder, tmp_path / "ours")


PAST = [Put(f"past_key_values.0.{n}", "tensor(float)", ["b", 2, "p", 16]) for n in ("key", "value")]
WORDS = [Put(n, "tensor(int64)", ["b", "s"]) for n in ("input_ids", "attention_mask")]
GIVEN = [Put("logits", "tensor(float)", ["b", "s", 9])]
GIVEN += [Put(f"present.0.{n}", "tensor(float)", ["b", 2, "t", 16]) for n in ("key", "value")]


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (PAST, GIVEN, "no input input_ids"),
        (WORDS, GIVEN, "of 0 layers and gives those of 1"),
        ([*WORDS, *PAST], GIVEN[1:], "no output logits"),
        ([*WORDS, PAST[0]], GIVEN, "not there for every layer"),
        ([*WORDS, *PAST, Put("pixel_values", "tensor(float)", [])], GIVEN, "wants pixel_values"),
        (
            [*WORDS, PAST[0], Put("past_key_values.0.value", "tensor(float)", ["b", 4, "p", 16])],
            GIVEN,
            "differ",
        ),
        ([*WORDS, *(Put(p.name, "tensor(bfloat16)", p.shape) for p in PAST)], GIVEN, "bfloat16"),
        ([*WORDS, *(Put(p.name, p.type, ["b", "h", "p", 16]) for p in PAST)], GIVEN, "is open"),
        ([*WORDS, *(Put(p.name, p.type, [2, 16]) for p in PAST)], GIVEN, "2 dimensions"),
    ],
)
def test_an_unknown_form_is_named(inputs: list[Put], outputs: list[Put], says: str) -> None:
    """By the input or output that does not fit."""
    with pytest.raises(ValueError, match=says):
        recognise(inputs, outputs)


def test_the_order_of_inputs_does_not_matter() -> None:
    """Nor does a file's name: nothing else is looked at."""
    form = recognise(reversed([*WORDS, *PAST, Put("position_ids", "tensor(int64)", ["b", "s"])]), GIVEN)

    assert (1, 2, 16, True, "") == (form.layers, form.kv_heads, form.head_dim, form.positions, form.keep)
    assert 2 * 2 * 16 * 4 == form.token_bytes


def test_candidates_are_the_best_with_ties_by_id() -> None:
    """At the end of them, too, where only some of the equals have a place."""
    logits = np.array([[1, 3, 2, 3, 1, 1], [0, 0, 0, 0, 0, 0]], np.float32)

    assert [[1, 3, 2, 0], [0, 1, 2, 3]] == best(logits, 4).tolist()


def test_an_export_is_what_it_says(tmp_path: Path) -> None:
    """The builder of these tests: GroupQueryAttention in the one form, none in the other."""
    for grouped in (True, False):
        model = onnx.load(Export(CONFIG, grouped=grouped).write(tmp_path / "m.onnx"))

        assert grouped == any(node.op_type == "GroupQueryAttention" for node in model.graph.node)
    assert json.loads((genai(tmp_path / "g", CONFIG) / "genai_config.json").read_text())["model"][
        "context_length"
    ]
