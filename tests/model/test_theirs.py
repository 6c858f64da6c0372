"""Beside torch and transformers: every family says what theirs says, and a choice is what theirs leaves.

Skipped where they are not installed, as they are not in the lock: docs/families.md says how it is run, and
what was found. `pytest -s` prints the figures.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from millrace.convert import architecture, convert
from millrace.convert.card import Quant
from millrace.messages import Sampling
from services.engine.model.session import OrtModel
from services.engine.steps.sequence import Sequence
from tests.kit import slow_sampler
from tests.kit.checkpoint import write_checkpoint, write_embedder
from tests.kit.models import FAMILIES, Config, small
from tests.model.test_golden import computed, words

torch: Any = pytest.importorskip("torch", reason="torch is not installed: docs/families.md")
transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: docs/families.md"
)
pytestmark = pytest.mark.filterwarnings("default")
transformers.utils.logging.disable_progress_bar()

Floats = npt.NDArray[np.float32]

LENGTH, DECODED = 300, 16
"""Beyond every window and every original context; and how many of them are decoded by theirs, one by one."""

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}

CASES: dict[str, Config] = {
    **FAMILIES,
    "llama, biases": small("Llama", attention_bias=True, mlp_bias=True),
    "llama 3.1": small("Llama", rope_parameters={**FAMILIES["llama3.2"]["rope_scaling"], "rope_theta": 5e5}),
    "yarn by halves": small("Qwen3", rope_scaling={**YARN, "truncate": False}),
    "yarn, scaled": small("Qwen2", rope_scaling={**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}),
    "mistral 0.3": small("Mistral", sliding_window=None, rope_theta=1e6),
    "qwen2 windows": small("Qwen2", use_sliding_window=True, sliding_window=13, max_window_layers=1),
    "qwen3 windows": small(
        "Qwen3",
        use_sliding_window=True,
        sliding_window=13,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        attention_bias=True,
    ),
    "smollm3 windows": small("SmolLM3", num_hidden_layers=4, use_sliding_window=True, sliding_window=11),
    "smollm3, said": small("SmolLM3", no_rope_layers=[0, 1, 1], tie_word_embeddings=False),
    "gemma2, unsaid": small("Gemma2", head_dim=256, sliding_window=9, attention_bias=True),
    "gemma3 of 5": small(
        "Gemma3",
        model_type="gemma3_text",
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=24,
        final_logit_softcapping=3.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    ),
}
OF_FIVE = ("llama 3.1", "gemma3 of 5")  # Transformers 4 knows no `rope_parameters`
CASES["loud keys"] = small("Qwen2")  # 16 bits of a loud bias are not those of the text
BOUNDS: dict[Quant, float] = {"fp32": 2e-5, "int8": 0.15, "int4": 0.75}
"""Of their own size. Random weights are the hardest for few bits: all of them count."""


def hub(folder: Path, config: Config) -> Path:
    """In 16 bits, which all hold exactly; a padding that is in the vocabulary."""
    return write_checkpoint(folder, {"pad_token_id": 0, **config}, dtype="F16")


def opened(folder: Path, kind: Any) -> Any:
    model, told = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )

    assert not any(told.values()), told  # every tensor has its place
    return model.eval()


def theirs(folder: Path, config: Config, tokens: list[int]) -> tuple[Floats, Floats]:
    """Logits after each token: all at once, and the last ones decoded with their cache."""
    model = opened(folder, getattr(transformers, config["architectures"][0]))
    ids = torch.tensor([tokens])
    split = len(tokens) - DECODED
    with torch.inference_mode():
        whole = model(ids).logits[0]
        known = model(ids[:, :split], use_cache=True)
        rows = [known.logits[0]]
        for at in range(split, len(tokens)):
            known = model(ids[:, at : at + 1], past_key_values=known.past_key_values, use_cache=True)
            rows.append(known.logits[0])
    return whole.numpy(), torch.cat(rows).numpy()


def far(found: Floats, expected: Floats) -> float:
    """The root mean square of the differences, as a share of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def agree(found: Floats, expected: Floats) -> float:
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


@pytest.mark.parametrize("name", CASES)
def test_logits(tmp_path: Path, name: str) -> None:
    """In fp32 to its precision, prefilled and decoded; with fewer bits within their bounds."""
    if name in OF_FIVE and transformers.__version__ < "5":
        pytest.skip("its configuration is one of transformers 5")
    config = CASES[name]
    folder = hub(tmp_path / "hub", config)
    tokens = words(config, LENGTH)
    whole, decoded = theirs(folder, config, tokens)
    print(f"\n{name:16} theirs {far(decoded, whole):.0e}", end="")
    for quant, bound in BOUNDS.items():
        cache: Any = "fp32" if quant == "fp32" else "int8"
        made = convert(folder, tmp_path / quant, quant, cache=cache, accept=True)
        found, at = computed(OrtModel(made, 3, 16, max_len=512), tokens, chunk=16)
        error = max(far(found, whole[at]), far(found, decoded[at]))
        print(f"   {quant} {error:.1e} {agree(found, whole[at]):.1%}", end="")

        assert error < bound


def test_a_context_of_the_original_length(tmp_path: Path) -> None:
    """Phi-3 has other positions where a context is no longer than its original one."""
    config = CASES["phi3 long"]
    folder = hub(tmp_path / "hub", config)
    tokens = words(config, 200)
    whole, decoded = theirs(folder, config, tokens)
    made = convert(folder, tmp_path / "m", "fp32", cache="fp32", max_len=256)
    found, at = computed(OrtModel(made, 3, 16, max_len=256), tokens, chunk=16)

    assert max(far(found, whole[at]), far(found, decoded[at])) < BOUNDS["fp32"]


@pytest.mark.parametrize("name", CASES)
def test_configurations(tmp_path: Path, name: str) -> None:
    """What transformers makes of a configuration, and writes, says to us what it said before."""
    config = CASES[name]
    folder = hub(tmp_path / "hub", config)
    kind = getattr(transformers, config["architectures"][0]).config_class
    kind.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    before, after = architecture.read(config), architecture.read({**config, **again})
    newest = architecture.read({**again, "architectures": config["architectures"]})
    for made in (after, newest):
        assert [layer.window for layer in before.layers] == [layer.window for layer in made.layers]
        for was, is_ in zip(before.layers, made.layers, strict=True):
            tables = [layer.rope.tables(LENGTH) if layer.rope else None for layer in (was, is_)]
            assert np.array_equal(*np.nan_to_num(np.array(tables, dtype=np.float64)))
        same = [{**vars(each), "layers": (), "family": ""} for each in (before, made)]

        assert same[0] == same[1]


@pytest.mark.parametrize("mode", ["lasttoken", "mean_tokens"])
@pytest.mark.parametrize("name", ["qwen3", "qwen2", "mistral"])
def test_states(tmp_path: Path, name: str, mode: str) -> None:
    """A model that makes vectors, as sentence-transformers saves it, loads as theirs: the same states."""
    from tests.model.test_vectors import made, read

    config = {**CASES[name], "pad_token_id": 0}
    base = config["architectures"][0].replace("ForCausalLM", "Model")
    folder = write_embedder(tmp_path / "hub", config, mode)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [base]}))
    model = opened(folder, getattr(transformers, base))
    texts = [words(config, length, length) for length in (1, 16, 45)]
    with torch.inference_mode():
        states = [model(torch.tensor([text])).last_hidden_state[0] for text in texts]
    pooled = torch.stack([each[-1] if mode == "lasttoken" else each.mean(dim=0) for each in states])
    expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    ours = OrtModel(convert(folder, tmp_path / "m", "fp32", cache="fp32"), 3, 16, max_len=256)
    found = read(made(ours, texts, slots=3, chunk=16))
    print(f"\n{name:10} {mode:12} {far(found, expected):.1e}", end="")

    assert far(found, expected) < 1e-3  # embeddings are kept in 16 bits


ANSWER, STOP = [3, 3, 5, 9, 3], 7
CHOICES = [
    Sampling(0),
    Sampling(0, temperature=0.3),
    Sampling(0, temperature=1.7),
    Sampling(0, top_k=5),
    Sampling(0, top_p=0.4),
    Sampling(0, top_p=0.95, temperature=0.8),
    Sampling(0, min_p=0.05),
    Sampling(0, min_p=0.2, temperature=2.0),
    Sampling(0, top_k=20, top_p=0.7, temperature=1.3),
    Sampling(0, top_k=9, min_p=0.1, temperature=0.9),
    Sampling(0, repetition=1.3),
    Sampling(0, repetition=0.8, top_p=0.9),
    Sampling(0, bias={4: 3.0, 200: -100.0}, top_k=12),
]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("sampling", CHOICES, ids=lambda s: ", ".join(f"{k}={v}" for k, v in told(s).items()))
def test_what_is_left_to_choose_from(sampling: Sampling, early: bool) -> None:
    """The same tokens with the same chances, wherever a parameter of theirs means what ours does."""
    steps = transformers.generation.logits_process
    logits = np.random.default_rng(5).normal(0, 2.5, (20, 331)).astype(np.float32)
    for row in logits:
        sequence = Sequence("r", 2, [8, 9, *ANSWER], sampling, 99, stop_ids=frozenset([STOP]))
        sequence.min_tokens = 9 if early else 0
        biases = [[[token], bias] for token, bias in sampling.bias.items()]
        chain = [steps.SequenceBiasLogitsProcessor(biases)] if biases else []
        chain += [steps.MinNewTokensLengthLogitsProcessor(2, 9, STOP)] if early else []
        chain += [steps.RepetitionPenaltyLogitsProcessor(sampling.repetition)]
        chain += [steps.TemperatureLogitsWarper(sampling.temperature)]
        chain += [steps.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        chain += [steps.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        chain += [steps.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
        scores, ids = torch.tensor(row[None]), torch.tensor([sequence.tokens])
        for step in chain:
            scores = step(ids, scores)
        expected = torch.softmax(scores[0].double(), dim=0).numpy()
        found = np.zeros(len(row))
        for token, weight in slow_sampler.kept(row.tolist(), sequence):
            found[token] = weight

        assert np.allclose(expected, found / found.sum(), atol=1e-6)


def told(sampling: Sampling) -> dict[str, Any]:
    plain = Sampling(0)
    names = (name for name in sampling.__struct_fields__ if getattr(sampling, name) != getattr(plain, name))
    return {name: getattr(sampling, name) for name in names}
