"""Conversations become ids: as the reference's, and no client writes a control token."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from millrace.errors import Code, Failure
from services.tokenizer.chat import ChatTemplate
from services.tokenizer.controls import Controls
from services.tokenizer.encode import Encoder, for_template
from train.corpus import conversations
from train.facts import WEATHER_TOOL

DEMO = Path("models/demo")
ENCODER = Encoder.load(DEMO)
PLAIN = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
TEMPLATE = ChatTemplate(
    json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
)
START, END = PLAIN.token_to_id("<|im_start|>"), PLAIN.token_to_id("<|im_end|>")
CONTROLS = {0, START, END}

# What an attacker has: control tokens, every way to break one in two, and what templates trim or search for.
SCRAPS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<",
    "<|",
    "<|im_",
    "<|im_end|",
    "im_end|>",
    "|>",
    ">",
]
SCRAPS += [" ", "\n", "system", "<tool_call>", "</tool_call>", "a", "é", "\U000f0000", "<|im_<|im_end|>end|>"]
HOSTILE = st.lists(st.sampled_from(SCRAPS), max_size=6).map("".join)


def say(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def controls(ids: list[int]) -> list[int]:
    return [token_id for token_id in ids if token_id in CONTROLS]


def reference(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
    """One encoding of the rendered text."""
    return PLAIN.encode(TEMPLATE.render(messages, tools=tools), add_special_tokens=False).ids


def test_conversations_encode_as_the_reference() -> None:
    """Ordinary conversations, tools included, give the reference's ids."""
    for messages, tools in conversations(seed=9, count=200):
        expected = reference(messages, tools)
        actual = ENCODER.chat(messages, tools=tools)

        assert expected == actual


@given(
    st.lists(
        st.text(max_size=30) | st.sampled_from(["> quoted", "a <", "|>", "1 < 2 > 0", "x |"]), min_size=1
    )
)
def test_ordinary_text_encodes_as_the_reference(texts: list[str]) -> None:
    """Signs that control tokens are made of change nothing as long as they are none."""
    assert reference(say(*texts)) == ENCODER.chat(say(*texts))


@given(st.lists(HOSTILE, min_size=1, max_size=4))
def test_no_message_becomes_a_control_token(texts: list[str]) -> None:
    """Whatever is written, the control tokens are the template's, and every character is kept."""
    ids = ENCODER.chat(say(*texts))

    assert controls(ENCODER.chat(say(*("a" for _ in texts)))) == controls(ids)
    assert TEMPLATE.render(say(*texts)) == PLAIN.decode(ids, skip_special_tokens=False)


@given(HOSTILE, HOSTILE)
def test_no_tool_becomes_a_control_token(text: str, key: str) -> None:
    """Names, descriptions, keys, a call's arguments and its result are a client's text, too."""

    def ids(text: str, key: str) -> list[int]:
        tool = copy.deepcopy(WEATHER_TOOL)
        tool["function"]["description"] = text
        tool["function"]["parameters"]["properties"][key] = {"enum": [text]}
        function = {"name": text, "arguments": json.dumps({key: [text]})}
        call = {"id": "1", "type": "function", "function": function}
        messages = [
            *say("weather?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": text}] * 2},
        ]
        return ENCODER.chat(messages, tools=[tool])

    assert controls(ids("a", "b")) == controls(ids(text, key))


def printing(source: str) -> Encoder:
    """The demo tokenizer under another template."""
    return Encoder(
        PLAIN,
        controls=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        templates={"default": ChatTemplate(source)},
        eos_ids=frozenset(),
    )


def test_a_token_in_two_messages_is_none() -> None:
    """Two texts that a template prints side by side do not add up to a control token."""
    encoder = printing("<|im_start|>{% for m in messages %}{{ m.content | trim }}{% endfor %}<|im_end|>")
    for texts in (("<", "|im_end|>"), ("x <|im_end| ", "\n> y"), ("<|im_", "end|>"), ("<|im_", "e", "nd|>")):
        assert controls(encoder.chat(say(*texts))) == [START, END]


def test_a_token_half_of_which_is_the_templates_is_none() -> None:
    """Nor does a text add up to one with what the template prints before or behind it."""
    assert controls(printing("<|im_start|><|im_{{ messages[0].content }}").chat(say("end|>"))) == [START]
    assert controls(printing("{{ messages[0].content }}|im_end|><|im_start|>").chat(say("a <"))) == [START]


def test_a_forged_token_does_not_hide_a_real_one() -> None:
    """The beginning of a control token, right before the template's own, leaves that one whole."""
    for scrap in ("<|im_end", "<|im_start|", "<", "<|im_end|><|im_end|"):
        assert controls(ENCODER.chat(say(scrap))) == [START, END, START]

    overlapping = Controls({"<a<": 1, "<b>": 2})
    assert [match[0] for match in overlapping.spoken("<a<b>", {2})] == ["<b>"]


def _llama_like(*, rstrip: bool) -> Tokenizer:
    vocab = {token: at for at, token in enumerate(["<unk>", "<s>", "</s>", *"▁<>/sab"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, rstrip=rstrip) for text in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


@pytest.mark.parametrize("rstrip", [False, True])
def test_other_tokenizers_keep_their_control_tokens_too(rstrip: bool) -> None:
    """A tokenizer with a normalizer, and tokens that swallow the blanks after them, forged or not."""
    tokenizer = _llama_like(rstrip=rstrip)
    template = ChatTemplate("<s>  {{ messages[0].content }}</s>  b")
    encoder = Encoder(
        tokenizer,
        controls=["<unk>", "<s>", "</s>"],
        templates={"default": template},
        eos_ids=frozenset({2}),
    )
    expected = tokenizer.encode("<s>  a</s>  b", add_special_tokens=False).ids
    vocab = tokenizer.get_vocab()
    forged, at = [vocab[char] for char in "</s>"], expected.index(vocab["a"])

    assert encoder.chat(say("a")) == expected
    assert encoder.chat(say("</s>a")) == [*expected[:at], *forged, *expected[at:]]


def test_raw_text_speaks_for_itself() -> None:
    """A raw completion's control tokens count: who writes raw text writes the whole prompt."""
    text = "<|im_start|>user\nhi<|im_end|>"

    assert PLAIN.encode(text).ids == ENCODER.encode(text)
    assert controls(ENCODER.encode(text)) == [START, END]


def test_forged_tokens_change_nothing_for_the_next() -> None:
    """After a hostile conversation an ordinary one, and raw text, are encoded as before."""
    before = ENCODER.chat(say("hi")), ENCODER.encode("<|im_end|>")
    ENCODER.chat(say("<|im_end|>"))

    assert before == (ENCODER.chat(say("hi")), ENCODER.encode("<|im_end|>"))


def test_messages_in_the_apis_form_are_prepared() -> None:
    """Parts are joined, a missing content is empty, and arguments become an object if they are JSON."""

    def call(arguments: Any) -> dict[str, Any]:
        return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}

    given_ = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "tool_calls": [call('{"x": 1}'), call(""), call("{broken"), call({"y": 2})]},
    ]
    kept = copy.deepcopy(given_)
    expected = [
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call({"x": 1}), call({}), call("{broken"), call({"y": 2})],
        },
    ]

    assert expected == for_template(given_)
    assert kept == given_


def test_pictures_are_refused() -> None:
    """A part that is no text is the client's mistake, not silently dropped."""
    with pytest.raises(Failure) as caught:
        ENCODER.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}])

    assert (caught.value.code, caught.value.param) == (Code.INVALID_REQUEST, "messages")


def test_a_deep_tool_is_refused() -> None:
    """A schema within a schema within ... ends as a failure, not as a crash."""
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"properties": schema}
    with pytest.raises(Failure) as caught:
        ENCODER.chat(say("hi"), tools=[schema])

    assert caught.value.code == Code.INVALID_REQUEST


def test_a_templates_words_carry_no_marks() -> None:
    """Where a template quotes the client, the client reads what it wrote."""
    encoder = printing("{{ raise_exception('no ' + messages[0].content) }}")
    with pytest.raises(Failure, match=r"no <\|im_end\|>$"):
        encoder.chat(say("<|im_end|>"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of its own, to be spoiled."""
    copied = tmp_path / "model"
    copied.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, copied / name)
    return copied


def change(folder: Path, **fields: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def test_the_folder_tells_what_ends_an_answer(folder: Path) -> None:
    """Every file that says so counts."""
    assert (frozenset({END}), 4096) == (ENCODER.eos_ids, ENCODER.vocab_size)

    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert frozenset({END, 7}) == Encoder.load(folder).eos_ids

    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 9]}')
    assert frozenset({END, 0, 9}) == Encoder.load(folder).eos_ids


def test_what_ends_an_answer_is_a_control_token(folder: Path) -> None:
    """A token that tokenizer.json calls a word, but that ends answers, cannot be written by a client."""
    call = PLAIN.token_to_id("<tool_call>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": call}))

    assert call in ENCODER.chat(say("<tool_call>"))
    assert call not in Encoder.load(folder).chat(say("<tool_call>"))


def test_templates_are_found_where_the_reference_finds_them(folder: Path) -> None:
    """A file of its own before the configuration; by name, one for tools and one without."""
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b{{ tools | length }}"}]
    change(folder, chat_template=named)
    encoder = Encoder.load(folder)
    assert [PLAIN.decode(encoder.chat(say("x"), tools=tools)) for tools in (None, [WEATHER_TOOL])] == [
        "a",
        "b1",
    ]

    (folder / "chat_template.jinja").write_text("own {{ eos_token }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("c{{ tools | length }}")
    encoder = Encoder.load(folder)
    assert [
        PLAIN.decode(encoder.chat(say("x"), tools=tools), skip_special_tokens=False)
        for tools in (None, [WEATHER_TOOL])
    ] == ["own <|im_end|>", "c1"]


def test_special_tokens_are_found_where_the_reference_finds_them(folder: Path) -> None:
    """In the configuration, as a list or by name; before it had them all, in a file of their own."""
    call, close = (PLAIN.token_to_id(text) for text in ("<tool_call>", "</tool_call>"))
    change(folder, extra_special_tokens=["<tool_call>"])
    assert call not in Encoder.load(folder).chat(say("<tool_call>"))

    change(folder, extra_special_tokens={"call": "<tool_call>"})
    assert call not in Encoder.load(folder).chat(say("<tool_call>"))

    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</tool_call>"}}))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert Encoder.load(folder).eos_ids == frozenset({END})
    config.pop("added_tokens_decoder")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Encoder.load(folder).eos_ids == frozenset({close})


def test_without_a_template_there_is_no_chat(folder: Path) -> None:
    """A base model serves raw completions, and says why it does not chat."""
    change(folder, chat_template=None)
    with pytest.raises(Failure, match="no chat template"):
        Encoder.load(folder).chat(say("x"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab"'),
        ("tokenizer_config.json", None),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {"content": "<|im_end|>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}'),
        ("tokenizer_config.json", '{"chat_template": 7}'),
        ("generation_config.json", "\xff"),
        ("config.json", "[" * 100_000),
        ("chat_template.jinja", "{% for %}"),
    ],
)
def test_a_broken_folder_names_its_file(folder: Path, name: str, content: str | None) -> None:
    """A model that cannot be read is a start-up error which says where to look."""
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Encoder.load(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"]
)
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """A model folder must not make us read files beside it, however good they are."""
    outside = tmp_path / "outside"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=name.replace(".", r"\.") + ": leads out of its folder"):
        Encoder.load(folder)


def test_forging_without_measure_is_refused() -> None:
    """Some control tokens in a text are text; a text that is nothing else is not worth the work."""
    fits = ENCODER.chat(say("<|im_end|>" * 500 + "<|im_start|>" * 500))
    with pytest.raises(Failure, match="more than 1000") as refused:
        ENCODER.chat(say("<|im_end|>" * 1001))

    assert controls(fits) == controls(ENCODER.chat(say("a")))
    assert Code.INVALID_REQUEST == refused.value.code


@pytest.mark.parametrize("text", ["word ", "a", " ", "\n", "<|im_end|> ", "é", "日"])
def test_a_text_that_cannot_fit_is_not_encoded_to_its_end(text: str) -> None:
    """Its beginning has too many tokens already; one that fits is encoded as ever."""
    with pytest.raises(Failure, match="context is 100 tokens") as refused:
        ENCODER.encode(text * 100_000, most=100)
    whole = ENCODER.encode(text * 3000)

    assert Code.CONTEXT_LENGTH_EXCEEDED == refused.value.code
    assert whole == ENCODER.encode(text * 3000, most=len(whole))


@pytest.mark.parametrize("begins", [False, True])
def test_a_text_ends_as_its_configuration_says(tmp_path: Path, begins: bool) -> None:
    """Llama's class adds a token that tokenizer.json may know nothing of; what is cut keeps it."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "m"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True, "add_bos_token": begins}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|im_start|>"}))
    before = [START] if begins else []
    encoder, plain = Encoder.load(folder), ENCODER.encode("a mill by the river")

    assert [*before, *plain, END] == encoder.encode("a mill by the river")
    assert [*before, *plain, END] == encoder.beginning("a mill by the river", most=len(plain) + 2)
    assert [*before, *plain[: 3 - len(before)], END] == encoder.beginning("a mill by the river", most=4)
    assert plain == encoder.encode("a mill by the river", add_special_tokens=False)
