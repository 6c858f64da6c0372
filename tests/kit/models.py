"""Small configurations of every family, with the awkward sizes that real ones do not have."""

from typing import Any

Config = dict[str, Any]


def small(family: str, **more: Any) -> Config:
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "vocab_size": 331,
        "hidden_size": 72,
        "intermediate_size": 200,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **more,
    }


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

FAMILIES: dict[str, Config] = {
    "llama2": small("Llama", num_key_value_heads=6),
    "llama3.2": small("Llama", rope_theta=500000.0, rope_scaling=LLAMA3_ROPE, tie_word_embeddings=True),
    "linear": small("Llama", rope_scaling={"type": "linear", "factor": 2.0}),
    "yarn": small(
        "Llama", rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    ),
    "mistral": small("Mistral", sliding_window=13),
    "qwen2": small("Qwen2", tie_word_embeddings=True),
    "loud keys": small("Qwen2", loud_keys=True),
    "qwen3": small("Qwen3", tie_word_embeddings=True, rope_theta=1e6),
    "smollm3": small("SmolLM3", num_hidden_layers=4, tie_word_embeddings=True),
    "phi3": small("Phi3", sliding_window=17),
    "phi3 long": small(  # as Phi-4-mini, of whose heads a part turns
        "Phi3",
        hidden_size=96,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        partial_rotary_factor=0.5,
        original_max_position_embeddings=256,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0 + 0.5 * i for i in range(8)],
        },
    ),
    "gemma2": small(
        "Gemma2",
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=9,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": small(
        "Gemma3",
        model_type="gemma3_text",
        hidden_activation="gelu_pytorch_tanh",
        num_hidden_layers=4,
        sliding_window=9,
        sliding_window_pattern=3,
        query_pre_attn_scalar=16,
        rope_theta=1e6,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
}


def whole(config: Config) -> Config:
    """The same with linear layers whose inputs are multiples of 64, as a GPU's in 8 and 4 bits have to be."""
    heads = 128 // config["head_dim"]
    alone = config["num_key_value_heads"] == config["num_attention_heads"]
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": heads}
    return {**config, **sizes, "num_key_value_heads": heads if alone else min(2, heads // 2)}
