"""What a conversion costs is measured; what is planted to make it cost much is found and dealt with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from millrace import cli
from millrace.convert import Poor, architecture, calibrate, card, convert, text
from millrace.convert.evaluate import evaluate
from millrace.convert.linear import KERNELS, OF_GPU
from millrace.convert.network import Linear, Plan
from millrace.convert.quality import Quality
from millrace.convert.safetensors import Weights
from millrace.messages import Sampling
from services.engine.model.session import OrtModel
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence
from tests.kit import planted, reference
from tests.kit.checkpoint import Tensors, write_checkpoint
from tests.kit.models import FAMILIES, small


def naive(patch: pytest.MonkeyPatch) -> None:
    """Every linear layer in plain 8 bits, and one scale for all keys, and for all values."""
    patch.setattr(calibrate, "arithmetic", lambda *given: None)
    patch.setattr(calibrate, "coarse", lambda seen: False)


@pytest.mark.parametrize(
    "what",
    [
        planted.huge_norm_channels,
        planted.spiked_down_inputs,
        planted.twin_spikes,
        planted.loud_values,
        planted.loud_keys,
    ],
    ids=lambda what: what.__name__,
)
def test_outliers_cost_little(tmp_path: Path, what: Callable[[Tensors], None]) -> None:
    """They ruin a conversion that does not look for them, which is refused; this one hardly notices."""
    folder = planted.plant(tmp_path / "hub", what)
    with pytest.MonkeyPatch.context() as patch:
        naive(patch)
        with pytest.raises(Poor, match="the result is not good") as refused:
            convert(folder, tmp_path / "naive", words=planted.TEXT)
    found = card.load(convert(folder, tmp_path / "model", words=planted.TEXT)).quality

    assert not (tmp_path / "naive").exists()
    assert (refused.value.quality.agreement or 0) < 0.9
    assert found and (found.agreement or 0) >= 0.99


def test_the_card_says_what_the_engine_does(tmp_path: Path) -> None:
    """Its figures are those of the engine's own logits beside a float64 reference."""
    config = json.loads((planted.DEMO / "config.json").read_text())
    folder = convert(planted.DEMO, tmp_path / "model", "int4")
    said = card.load(folder).quality
    assert said and said.original and said.kl and said.agreement
    a = architecture.read(config)
    tokens = text.halves(planted.DEMO, text.of(planted.DEMO), a)[1]
    model = OrtModel(folder, 1, 1)
    ours = []
    main = Sequence("main", len(tokens), tokens, Sampling(0), 1, epoch=1, slot=0)
    model.run(Step([], Chunk(Sequence("main", 1, tokens[:1], Sampling(0), 1, epoch=1, slot=0), 0, 1)))
    ours.append(model.logits[0].copy())
    for main.computed in range(1, len(tokens) - 1):
        model.run(Step([main], None))
        ours.append(model.logits[0].copy())
    weights = Weights(planted.DEMO)
    exact = reference.logits(
        {**config, "tie_word_embeddings": True},
        {name: weights.get(name, *weights.shape(name)) for name in weights},
        tokens,
    )[:-1]
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (exact, np.array(ours, np.float64)))
    following = np.arange(len(q)), tokens[1:]

    assert said.tokens == len(q)
    assert said.perplexity == pytest.approx(np.exp(-q[following].mean()), rel=1e-3)
    assert said.original == pytest.approx(np.exp(-p[following].mean()), rel=1e-3)
    assert said.kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=0.02)
    assert said.agreement == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean(), abs=0.003)


@pytest.mark.parametrize("quant", ["int8", "int4", "fp32"])
def test_eval_says_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], quant: str) -> None:
    """From the graphs that were written, to the last digit; without the original, what is ours alone."""
    store = ["--models", str(tmp_path / "store")]
    assert 0 == cli.main(["model", "convert", str(planted.DEMO), "--quant", quant, "--name", "d", *store])
    assert "top-1 agreement" in capsys.readouterr().out
    assert 0 == cli.main(["model", "show", "d", *store])
    assert "top-1 agreement" in capsys.readouterr().out
    said = card.load(tmp_path / "store" / "d").quality
    assert 0 == cli.main(["model", "eval", "d", "--json", *store])
    again = json.loads(capsys.readouterr().out)
    (tmp_path / "text").write_text(planted.TEXT)
    elsewhere = ["--source", str(planted.plant(tmp_path / "other", planted.loud_keys))]
    assert 0 == cli.main(["model", "eval", "d", str(tmp_path / "text"), "--json", *elsewhere, *store])
    other = json.loads(capsys.readouterr().out)

    assert said
    assert {"name": "d", **msgspec.to_builtins(said)} == pytest.approx(again)
    assert other["kl"] > again["kl"]
    assert 1099 == other["tokens"]


def test_eval_without_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexity alone."""
    hub = shutil.copytree(planted.DEMO, tmp_path / "hub")
    folder = convert(hub, tmp_path / "m")
    said = card.load(folder).quality
    shutil.rmtree(hub)

    assert said
    assert evaluate(folder) == Quality(tokens=said.tokens, perplexity=said.perplexity, vocab=said.vocab)
    assert 0 == cli.main(["model", "eval", str(folder)])
    assert "agreement" not in capsys.readouterr().out


def test_eval_of_what_has_no_graphs_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """A Hub folder is measured as an engine would have it; a model without weights is not."""
    assert 0 == cli.main(["model", "eval", "demo"])
    assert "KL from fp32" in capsys.readouterr().out
    assert 1 == cli.main(["model", "eval", "sim"])
    assert "sim is simulated" in capsys.readouterr().err


def test_random_weights_are_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They know nothing that a conversion could lose, which is said, and they are converted."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    for path in planted.DEMO.glob("tokenizer*.json"):
        shutil.copy(path, hub)
    out = tmp_path / "m"

    assert 0 == cli.main(["model", "convert", str(hub), "--out", str(out)])
    assert "fp32 knows no more than guessing" in capsys.readouterr().out
    found = card.load(out).quality
    assert found and found.original and found.original >= found.vocab


def test_what_is_accepted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the truth in its card."""
    naive(monkeypatch)
    folder = planted.plant(tmp_path / "hub", planted.loud_keys)
    found = card.load(convert(folder, tmp_path / "m", words=planted.TEXT, accept=True)).quality

    assert found and found.faults("int8")


def test_the_command_refuses_what_is_not_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how bad it is, and keeps it only if it is told to. Which text it was measured on is chosen."""
    naive(monkeypatch)
    hub = planted.plant(tmp_path / "hub", planted.loud_keys)
    (tmp_path / "text").write_text(planted.TEXT)
    out = tmp_path / "m"
    command = ["model", "convert", str(hub), "--calibrate", str(tmp_path / "text"), "--out", str(out)]

    assert 1 == cli.main(command)
    said = capsys.readouterr()
    assert "top-1 agreement" in said.out
    assert "the result is not good: KL is " in said.err
    assert not out.exists()
    assert 0 == cli.main([*command, "--accept"])
    assert "accepted, though KL is " in capsys.readouterr().out
    found = card.load(out).quality
    assert found and 511 == found.tokens


def test_a_text_begins_as_the_model_wants(tmp_path: Path) -> None:
    """Both halves of it, if its tokenizer puts something first."""
    made = Tokenizer(WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, "?"))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing("<s> $A", None, [("<s>", 0)])
    made.save(str(tmp_path / "tokenizer.json"))
    a = architecture.read(FAMILIES["llama2"])

    assert ([0] + [1] * 40, [0] + [2] * 40) == text.halves(tmp_path, "a " * 40 + "b " * 40, a)
    assert ([0] + [1] * 511, [0] + [2] * 511) == text.halves(tmp_path, "a " * 999 + "b " * 999, a)


def test_a_text_may_be_too_short(tmp_path: Path) -> None:
    """Which is said, before any work."""
    with pytest.raises(ValueError, match=r"tokens, too few to measure on: 64"):
        convert(planted.DEMO, tmp_path / "m", words="Hello!")


def chosen(x: Any, weights: Any, quant: str = "int8") -> Plan:
    linear = Linear("l", "x", weights.shape[1], len(weights), lambda: weights)
    calibrate.arithmetic(architecture.read(FAMILIES["llama2"]), plan := Plan(quant), linear, x)
    return plan


def test_arithmetic_is_chosen_by_its_error() -> None:
    """The quickest that will do: factors cost nothing, more bits cost time.

    What cancels is still there to be rounded, and no factor helps: large activations need more bits, and so
    do weights if they cancel nearly.
    """
    rng = np.random.default_rng(0)
    calm, weights = rng.standard_normal((2, 96, 192), dtype=np.float32)
    factors = np.where(np.arange(192) % 50 == 3, np.float32(300), np.float32(1))
    twins, cancelling = calm.copy(), weights.copy()
    twins[:, :8] *= 100
    twins[:, 8:16] = twins[:, :8]
    cancelling[:, 8:16] = -cancelling[:, :8]
    nearly = cancelling + np.where(np.arange(192) < 8, calm[:96] / 1000, 0).astype(np.float32)

    plain, smooth = chosen(calm, weights), chosen(calm * factors, weights / factors)
    assert ({}, {}) == (plain.kernels, plain.smooth)
    assert ({}, ["l"]) == (smooth.kernels, list(smooth.smooth))
    assert np.array_equal(smooth.smooth["l"], np.exp2(np.round(np.log2(smooth.smooth["l"]))))
    assert {"l": "wide"} == chosen(twins, cancelling).kernels
    assert {"l": "fine"} == chosen(twins, nearly).kernels
    assert {} == chosen(twins, nearly, "fp32").kernels


@pytest.mark.parametrize(("kernel", "most"), [("int8", 5e-4), ("wide", 1e-4), ("fine", 1e-8), ("int4", 2e-2)])
def test_the_error_of_each_kernel(kernel: str, most: float) -> None:
    """On what has no outliers, in each of the shapes that the graphs use."""
    rng = np.random.default_rng(0)
    x, weights = (rng.standard_normal((n, 72), dtype=np.float32) for n in (24, 40))
    linear = Linear("l", "x", 72, 40, lambda: weights)

    y = x @ weights.T

    assert calibrate.error(kernel, linear, x, weights, y, calibrate.differences(y)) < most


@pytest.mark.parametrize("family", ["llama2", "qwen2", "phi3", "gemma2", "qwen3"])
def test_factors_change_nothing_but_the_rounding(tmp_path: Path, family: str) -> None:
    """In every place where one layer's weights take what the next one's gave."""
    config = FAMILIES[family] if family != "qwen2" else small("Qwen2", mlp_bias=True)
    write_checkpoint(tmp_path / "hub", config)
    rng = np.random.default_rng(0)

    def any_factors(a: architecture.Architecture, plan: Plan, linear: Linear, *given: Any) -> None:
        factors = np.exp2(rng.integers(-3, 4, linear.k)).astype(np.float32)
        if linear.name.endswith("o_proj"):
            shared = factors.reshape(a.kv_heads, -1, a.head_dim)
            factors = np.broadcast_to(shared[:, :1], shared.shape).reshape(-1)
        plan.smooth[linear.name] = factors

    plain = card.load(convert(tmp_path / "hub", tmp_path / "plain", "fp32", cache="fp32"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "arithmetic", any_factors)
        folder = convert(tmp_path / "hub", tmp_path / "model", "fp32", cache="fp32")
    found = card.load(folder)

    assert 4 * found.layers + 1 == len(found.smoothed)
    assert plain.digest != found.digest
    assert found.quality and found.quality.kl is not None and found.quality.kl < 1e-5  # words are 16 bits


def test_every_kernel_is_tried_somewhere() -> None:
    """A new one needs a limit, and a place among these tests. A GPU's are not chosen by their error."""
    assert set(KERNELS) - set(OF_GPU.values()) == set(calibrate.MOST)
