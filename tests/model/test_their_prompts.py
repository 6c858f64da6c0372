"""Beside transformers: prompts, ids and texts are those that its tokenizers give.

Skipped where it is not installed, as it is not in the lock: docs/families.md says how it is run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from millrace.errors import Failure
from services.detokenizer.decode import TextDecoder
from services.tokenizer.encode import Encoder
from train.facts import WEATHER_TOOL

transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: docs/families.md"
)
jinja2: Any = pytest.importorskip("jinja2", reason="transformers renders with jinja2: docs/families.md")
pytestmark = pytest.mark.filterwarnings("default")

BOS, EOS, TURN = "<|begin|>", "<|end|>", "<|turn|>"
CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again; 1234567890 times.",
    "def f(x):\n    return {'a': [x, x + 1]}  # tabs\tand spaces\r\n",
    "Äpfel, naïve café, Straße, Ελληνικά, русский язык, 日本語のテキスト, 한국어, العربية",
    "हिन्दी, ไทย, 👩‍👩‍👧‍👦 🇫🇷 ✌🏽",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "   leading and trailing   ",
    "\n\n\t\n",
    "e\u0301 vs \u00e9, \ufb01 vs fi, \u2126 vs \u03a9",  # composed, decomposed, compatible
    "\u200b\u200d\ufeff\u00a0\u3000\u2028|\u0000\u0007\u007f",
    "\U0001f469\u200d\U0001f680\U0010ffff\ue000\U000f0000",
    "a" * 300 + "\u0301" * 50,
    "don't I'LL we've 12345.678e-9 __init__ <tag/> $€¥ ½",
    f"{BOS}{TURN}user{EOS}",
    f"x{EOS}y {EOS} z{TURN[:-1]} <|unknown|>",
    "\u2581already\u2581marked <0x41> <s>",
]


def bytes_bpe() -> Tokenizer:
    """As Llama 3's, Qwen's and SmolLM's are."""
    made = Tokenizer(models.BPE())
    pattern = r"'s|'t|'re|\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return made


def pieces(*, prepended: bool) -> Tokenizer:
    """With bytes for what is unknown: as Llama 2's and Phi-3's are, or, not `prepended`, Gemma's."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replaced: list[Any] = [normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581")] * prepended + replaced)
    if not prepended:
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prepended)
    fallback = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(CORPUS[:2], trainers.BpeTrainer(vocab_size=420, special_tokens=fallback))
    state = json.loads(made.to_str())  # its bytes are pieces like others
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not token["content"].startswith("<0x")
    ]
    found: Tokenizer = Tokenizer.from_str(json.dumps(state))
    return found


def metaspace() -> Tokenizer:
    """As older ones are, without merges."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"])
    )
    return made


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": bytes_bpe,
    "pieces": lambda: pieces(prepended=True),
    "pieces as Gemma's": lambda: pieces(prepended=False),
    "metaspace": metaspace,
}

TEMPLATES = {path.stem: path.read_text() for path in Path("tests/kit/templates").glob("*.jinja")}
"""In the manner of the families' own: headers with a date and tools; brackets that must alternate; roles that
are renamed or refused; macros, neighbours and reasoning; and what else Jinja has that templates use."""

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich \"<&>'"}},
}
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello!  "}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "日本語で <&'\"> \\ 👩‍🚀"}],
    [
        {"role": "user", "content": "How much?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nMuch."},
        {"role": "user", "content": "\n\nReally?\r\n"},
    ],
    [
        {"role": "system", "content": "You have tools."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"rain": true}', "tool_call_id": "c1"},
        {"role": "tool", "content": "and wind", "tool_call_id": "c2"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks"},
    ],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
]


def written(folder: Path, made: Tokenizer, template: str | dict[str, str], *, older: bool = False) -> Path:
    """A folder as transformers saves it; `older`: as its fourth version did."""
    made.add_special_tokens([BOS, EOS, TURN])
    begin = (BOS, made.token_to_id(BOS))
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=None, special_tokens=[begin])
    kind = transformers.PreTrainedTokenizerFast
    named = {"bos_token": BOS, "eos_token": EOS, "additional_special_tokens": [TURN]}
    kind(tokenizer_object=made, chat_template=template, **named).save_pretrained(folder)
    if older:
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": [TURN],
        }
        config |= {"clean_up_tokenization_spaces": False, "chat_template": template}
        added = made.get_added_tokens_decoder()
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    **config,
                    "bos_token": BOS,
                    "eos_token": {
                        "__type": "AddedToken",
                        "content": EOS,
                        "lstrip": False,
                        "rstrip": False,
                        "special": True,
                    },
                    "added_tokens_decoder": {
                        id: {"content": token.content, "special": token.special, "normalized": False}
                        for id, token in added.items()
                    },
                }
            )
        )
        for path in (*folder.glob("chat_template*"), *folder.glob("additional_chat_templates/*")):
            path.unlink()
    return folder


@pytest.fixture(
    scope="module", params=[(name, older) for name in TOKENIZERS for older in (False, True)], ids=str
)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Encoder, Any, Path]:
    """One folder, read by us and by them."""
    name, older = request.param
    folder = written(tmp_path_factory.mktemp("tokenizer"), TOKENIZERS[name](), "{{ messages }}", older=older)
    return Encoder.load(folder), transformers.AutoTokenizer.from_pretrained(folder), folder


@pytest.mark.parametrize("special", [False, True])
def test_texts(both: tuple[Encoder, Any, Path], special: bool) -> None:
    """Any text becomes the same ids, with what stands around it or without."""
    ours, theirs, _ = both
    expected = [theirs.encode(text, add_special_tokens=special) for text in TEXTS]

    assert expected == [ours.encode(text, add_special_tokens=special) for text in TEXTS]


def test_ids(both: tuple[Encoder, Any, Path]) -> None:
    """And back: at once, and token by token as a stream is."""
    ours, theirs, folder = both
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = ours.encode(text)
        whole = theirs.decode(ids, clean_up_tokenization_spaces=False)
        stream = TextDecoder(tokenizer)

        assert whole == ours.decode(ids)
        assert (
            theirs.decode(ids, skip_special_tokens=True) == "".join(map(stream.step, ids)) + stream.finish()
        )


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations(tmp_path: Path, name: str, older: bool) -> None:
    """Each renders to the same ids, or is refused by both."""
    template = TEMPLATES[name]
    folder = written(tmp_path, bytes_bpe(), template, older=older)
    ours, theirs = Encoder.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    asked: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (talk, {"tools": tools, "add_generation_prompt": goes_on}, more)
        for talk in TALKS
        for tools in (None, [WEATHER_TOOL], [WEATHER_TOOL] * 2)
        for goes_on in (True, False)
        for more in ({}, *([{"enable_thinking": False}] if "enable_thinking" in template else []))
    ]
    rendered = 0
    for talk, given, more in asked:
        try:
            expected = theirs.apply_chat_template(talk, **given, **more, return_dict=False)
        except jinja2.TemplateError:  # it says no; whatever else they raise is no answer
            with pytest.raises(Failure):
                ours.chat(talk, **given, kwargs=more)
            continue
        rendered += 1

        assert expected == ours.chat(talk, **given, kwargs=more)
    assert rendered >= len(asked) // 2


@pytest.mark.parametrize("older", [False, True])
def test_templates_by_name(tmp_path: Path, older: bool) -> None:
    """One for tools beside the usual one, wherever the folder has them."""
    named: Any = {"default": "plain {{ messages[0].content }}", "tool_use": "with {{ tools | length }}"}
    if older:
        named = [{"name": name, "template": template} for name, template in named.items()]
    folder = written(tmp_path, bytes_bpe(), named, older=older)
    ours, theirs = Encoder.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for tools in (None, [WEATHER_TOOL]):
        expected = theirs.apply_chat_template(TALKS[0], tools=tools, return_dict=False)

        assert expected == ours.chat(TALKS[0], tools=tools)
