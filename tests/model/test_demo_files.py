"""The demo model's folder in the repository: whole, of the size it says, and able to answer."""

import json
from math import prod
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.tokenizer.encode import Encoder
from tests.kit.llama import greedy, header, read

DEMO = Path("models/demo")
CONFIG = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_the_weights_have_the_shapes_of_the_configuration() -> None:
    """Every tensor is there, with its shape, as bf16; the bytes follow each other and end with the file."""
    table, start = header(DEMO / "model.safetensors")
    wide, narrow = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    query = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    value = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    expected = {
        "model.embed_tokens.weight": [CONFIG["vocab_size"], wide],
        "model.norm.weight": [wide],
    }
    for at in range(CONFIG["num_hidden_layers"]):
        shapes = {
            "input_layernorm": [wide],
            "self_attn.q_proj": [query, wide],
            "self_attn.k_proj": [value, wide],
            "self_attn.v_proj": [value, wide],
            "self_attn.o_proj": [wide, query],
            "post_attention_layernorm": [wide],
            "mlp.gate_proj": [narrow, wide],
            "mlp.up_proj": [narrow, wide],
            "mlp.down_proj": [wide, narrow],
        }
        expected |= {f"model.layers.{at}.{name}.weight": shape for name, shape in shapes.items()}

    assert expected == {name: entry["shape"] for name, entry in table.items()}
    at = 0
    for entry in table.values():
        assert entry["dtype"] == "BF16"
        assert entry["data_offsets"] == [at, at + 2 * prod(entry["shape"])]
        at = entry["data_offsets"][1]
    assert start % 8 == 0
    assert start + at == (DEMO / "model.safetensors").stat().st_size


def test_the_configuration_is_a_plain_llama() -> None:
    """What other programs read is there and usual: no biases, tied embeddings, sizes that kernels like."""
    assert CONFIG["architectures"] == ["LlamaForCausalLM"]
    assert CONFIG["model_type"] == "llama"
    assert CONFIG["torch_dtype"] == "bfloat16"
    assert CONFIG["tie_word_embeddings"] is True
    assert not CONFIG["attention_bias"]
    assert not CONFIG["mlp_bias"]
    assert CONFIG["head_dim"] in (32, 64)
    assert CONFIG["hidden_size"] % 128 == CONFIG["intermediate_size"] % 128 == 0
    assert CONFIG["num_attention_heads"] % CONFIG["num_key_value_heads"] == 0


def test_the_tokenizer_is_the_models() -> None:
    """The vocabularies are of one size, and the ids that begin and end texts are the tokenizer's own."""
    generation = json.loads((DEMO / "generation_config.json").read_text(encoding="utf-8"))
    encoder = Encoder.load(DEMO)

    assert CONFIG["vocab_size"] == TOKENIZER.get_vocab_size()
    assert TOKENIZER.token_to_id("<|im_end|>") == CONFIG["eos_token_id"] == generation["eos_token_id"]
    assert TOKENIZER.token_to_id("<|endoftext|>") == CONFIG["bos_token_id"] == generation["bos_token_id"]
    assert frozenset({CONFIG["eos_token_id"]}) == encoder.eos_ids


def test_the_folder_stays_small() -> None:
    """A clone carries the model, so it is at most 12 MB."""
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 12_000_000


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is 12 + 30?", "12 + 30 = 42"),
        ("Greet me in Korean.", "안녕하세요! 물레방아가 돌아갑니다."),
    ],
)
def test_it_answers(asked: str, answer: str) -> None:
    """The float64 reference, which shares no code with the training or the engine, says the right thing."""
    encoder, (config, weights) = Encoder.load(DEMO), read(DEMO)
    ids = encoder.chat([{"role": "user", "content": asked}])

    assert answer == TOKENIZER.decode(greedy(config, weights, ids, eos=encoder.eos_ids))
