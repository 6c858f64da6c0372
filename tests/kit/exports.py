"""Llamas as others export them to ONNX: as onnxruntime-genai's builder does, and as optimum does."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from millrace.convert.graph import Graph, Inline, Store
from tests.kit.checkpoint import Tensors, random_tensors

Config = dict[str, Any]

TEXT = Path(__file__).parents[2] / "models" / "demo"


@dataclass(frozen=True)
class Export:
    config: Config
    grouped: bool  # GroupQueryAttention; else plain operators, whose keys and values grow
    positions: bool = True  # asks for position_ids; else it counts the words of before, and sees no padding
    keep: bool = False  # takes num_logits_to_keep
    branch: bool = False  # forgets what was before, unless it is told that there is something
    half: bool = False  # keys and values in 16 bits
    data: str = ""  # the file of its weights

    def write(self, path: Path, tensors: Tensors | None = None) -> Path:
        store = Store(path.parent / self.data) if self.data else Inline()
        made = _Llama(self, tensors or random_tensors(self.config), store).model()
        onnx.save(made, path)
        if isinstance(store, Store):
            store.__exit__()
        return path


class _Llama:
    def __init__(self, export: Export, tensors: Tensors, store: Store | Inline):
        self.e, self.c = export, export.config
        self.t = tensors
        self.g = Graph("llama", store)
        self.heads, self.kv = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        self.d = self.c["head_dim"]
        self.kind: Any = np.float16 if export.half else np.float32

    def weight(self, name: str, *, turned: bool = True) -> str:
        value = self.t[name].astype(np.float32)
        return self.g.weight(name, lambda: np.ascontiguousarray(value.T) if turned else value)

    def ints(self, *values: int) -> str:
        return self.g.constant(list(values), np.int64)

    def model(self) -> onnx.ModelProto:
        g = self.g
        words = g.input("input_ids", np.int64, ["batch_size", "sequence_length"])
        mask = g.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
        if self.e.positions:
            g.input("position_ids", np.int64, ["batch_size", "sequence_length"])
        if self.e.keep:
            g.input("num_logits_to_keep", np.int64, [])
        if self.e.branch:
            g.input("use_cache_branch", np.bool_, [1])
        self.count = g.node("Gather", g.node("Shape", words), g.constant(1, np.int64))
        self.total = g.node("Gather", g.node("Shape", mask), g.constant(1, np.int64))
        if self.e.grouped:
            seen = g.node("Sub", g.node("ReduceSum", mask, self.ints(1), keepdims=0), g.constant(1, np.int64))
            self.seqlens, self.longest = g.node("Cast", seen, to=6), g.node("Cast", self.total, to=6)
        else:
            self._mask(mask)
        self.tables = self._rope()
        table = self.t["model.embed_tokens.weight"].astype(np.float16).astype(np.float32)
        x = g.node("Gather", g.weight("embed", lambda: table), words, axis=0)
        for i in range(self.c["num_hidden_layers"]):
            x = self._layer(i, x)
        if self.e.keep:
            start = g.node("Neg", g.node("Unsqueeze", "num_logits_to_keep", self.ints(0)))
            x = g.node("Slice", x, start, self.ints(np.iinfo(np.int64).max), self.ints(1))
        g.call(g.node("MatMul", self._norm("model.norm", x), self.weight("lm_head.weight")), "logits")
        g.output("logits", np.float32, ["batch_size", "sequence_length", self.c["vocab_size"]])
        return g.model()

    def _rope(self) -> tuple[str, str]:
        g = self.g
        rates = self.c["rope_theta"] ** (-np.arange(0, self.d, 2) / self.d)
        angles = np.arange(self.c["max_position_embeddings"])[:, None] * rates
        tables = {n: f(angles).astype(np.float32) for n, f in (("cos", np.cos), ("sin", np.sin))}
        cos, sin = (g.weight(n, lambda n=n: tables[n]) for n in tables)  # type: ignore[misc]
        if self.e.grouped:
            return cos, sin
        at = "position_ids" if self.e.positions else self.ahead
        # [batch or 1, 1, words, dim / 2]
        wide = [g.node("Gather", each, at, axis=0) for each in (cos, sin)]
        axes = self.ints(1) if self.e.positions else self.ints(0, 1)
        return g.node("Unsqueeze", wide[0], axes), g.node("Unsqueeze", wide[1], axes)

    def _mask(self, mask: str) -> None:
        """What may not be seen becomes very small: the padding, and what comes later."""
        g = self.g
        zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
        before = g.node("Sub", self.total, self.count)
        self.ahead = g.node("Range", before, self.total, one)
        keys = g.node("Range", zero, self.total, one)
        past = g.node("LessOrEqual", keys, g.node("Unsqueeze", self.ahead, self.ints(1)))
        real = g.node("Cast", g.node("Unsqueeze", mask, self.ints(1, 2)), to=9)
        seen = g.node("And", real, past)
        self.bias = g.node("Where", seen, g.constant(0, np.float32), g.constant(-1e9, np.float32))

    def _norm(self, name: str, x: str) -> str:
        gain = self.weight(f"{name}.weight", turned=False)
        return self.g.node("SimplifiedLayerNormalization", x, gain, epsilon=self.c["rms_norm_eps"], axis=-1)

    def _layer(self, i: int, x: str) -> str:
        g, at = self.g, f"model.layers.{i}"
        y = self._norm(f"{at}.input_layernorm", x)
        q, k, v = (g.node("MatMul", y, self.weight(f"{at}.self_attn.{n}_proj.weight")) for n in "qkv")
        past = [
            g.input(
                f"past_key_values.{i}.{n}", self.kind, ["batch_size", self.kv, "past_sequence_length", self.d]
            )
            for n in ("key", "value")
        ]
        if self.e.branch:
            past = [self._chosen(each) for each in past]
        attended = (self._grouped if self.e.grouped else self._plain)(i, q, k, v, past)
        for n in ("key", "value"):
            g.output(f"present.{i}.{n}", self.kind, ["batch_size", self.kv, "total_sequence_length", self.d])
        x = g.node("Add", x, g.node("MatMul", attended, self.weight(f"{at}.self_attn.o_proj.weight")))
        y = self._norm(f"{at}.post_attention_layernorm", x)
        gate, up = (g.node("MatMul", y, self.weight(f"{at}.mlp.{n}_proj.weight")) for n in ("gate", "up"))
        act = g.node("Mul", g.node("Mul", gate, g.node("Sigmoid", gate)), up)
        return g.node("Add", x, g.node("MatMul", act, self.weight(f"{at}.mlp.down_proj.weight")))

    def _chosen(self, past: str) -> str:
        g = self.g
        none = g.node("Slice", past, self.ints(0), self.ints(0), self.ints(2))
        branches = {
            name: onnx.helper.make_graph(
                [onnx.helper.make_node("Identity", [held], [f"{held}.{name}"])],
                name,
                [],
                [onnx.helper.make_value_info(f"{held}.{name}", onnx.TypeProto())],
            )
            for name, held in (("then_branch", past), ("else_branch", none))
        }
        return g.node("If", "use_cache_branch", named=(f"{past}.chosen",), **branches)

    def _grouped(self, i: int, q: str, k: str, v: str, past: list[str]) -> str:
        return self.g.nodes(
            "GroupQueryAttention",
            *(q, k, v, *past, self.seqlens, self.longest, *self.tables),
            outputs=3,
            named=(f"present.{i}.key", f"present.{i}.value"),
            domain="com.microsoft",
            num_heads=self.heads,
            kv_num_heads=self.kv,
            do_rotary=1,
        )[0]

    def _plain(self, i: int, q: str, k: str, v: str, past: list[str]) -> str:
        g = self.g

        def by_head(x: str, heads: int) -> str:
            return g.node(
                "Transpose", g.node("Reshape", x, self.ints(0, -1, heads, self.d)), perm=[0, 2, 1, 3]
            )

        def turned(x: str) -> str:
            cos, sin = self.tables
            a, b = g.nodes("Split", x, outputs=2, axis=-1, num_outputs=2)
            left = g.node("Sub", g.node("Mul", a, cos), g.node("Mul", b, sin))
            right = g.node("Add", g.node("Mul", b, cos), g.node("Mul", a, sin))
            return g.node("Concat", left, right, axis=-1)

        def stored(x: str) -> str:
            return g.node("Cast", x, to=10) if self.e.half else x

        def joined(name: str, old: str, new: str) -> str:
            whole = g.node("Concat", old, stored(new), axis=2, named=(f"present.{i}.{name}",))
            wide = g.node("Cast", whole, to=1) if self.e.half else whole
            each = g.node("Unsqueeze", wide, self.ints(2))
            many = self.heads // self.kv
            copies = g.node("Concat", *([each] * many), axis=2)
            return g.node("Reshape", copies, self.ints(0, self.heads, -1, self.d))

        keys = joined("key", past[0], turned(by_head(k, self.kv)))
        values = joined("value", past[1], by_head(v, self.kv))
        scores = g.node(
            "MatMul", turned(by_head(q, self.heads)), g.node("Transpose", keys, perm=[0, 1, 3, 2])
        )
        scores = g.node("Mul", scores, g.constant(self.d**-0.5, np.float32))
        shares = g.node("Softmax", g.node("Add", scores, self.bias), axis=-1)
        mixed = g.node("Transpose", g.node("MatMul", shares, values), perm=[0, 2, 1, 3])
        return g.node("Reshape", mixed, self.ints(0, -1, self.heads * self.d))


def genai(folder: Path, config: Config, tensors: Tensors | None = None, **how: Any) -> Path:
    """As onnxruntime-genai's builder leaves it: its own configuration, and no config.json."""
    _beside(folder)
    name = "any.onnx"
    Export(config, grouped=True, **{"data": "any.onnx.data", **how}).write(folder / name, tensors)
    model = {
        "context_length": config["max_position_embeddings"],
        "decoder": {"filename": name},
        "eos_token_id": [0],
        "type": "llama",
        "vocab_size": config["vocab_size"],
    }
    search = {"past_present_share_buffer": True}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))
    return folder


def optimum(folder: Path, config: Config, tensors: Tensors | None = None, **how: Any) -> Path:
    """As onnx-community has it: config.json, and the graph in a folder of its own."""
    _beside(folder)
    (folder / "onnx").mkdir()
    export = Export(config, grouped=False, **{"data": "model.onnx_data", **how})
    export.write(folder / "onnx" / "model.onnx", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _beside(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TEXT / name, folder / name)
