"""Ids become text: exactly the whole decoding, and piece by piece the same in every process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.detokenizer.decode import TextDecoder, learn, load_tokenizer

DEMO = load_tokenizer(Path("models/demo"))
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_level() -> Tokenizer:
    """Every byte, tokens that end and begin inside a character, and added tokens of every sort."""
    vocab = {char: at for at, char in enumerate(BYTES)}
    for text in ("é日", "😀😀", " the"):
        token = BYTE_LEVEL.pre_tokenize_str(text)[0][0]
        for part in (token, token[:-1], token[1:], token[:5], token[5:]):
            vocab.setdefault(part, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<é>"])
    tokenizer.add_tokens(["<call>", "a b é", "日", "é"])
    return tokenizer


def _sentence_piece(decoder: decoders.Decoder | None) -> Tokenizer:
    """As Llama, Gemma and T5: words with a stand-in for the space, and bytes as tokens of their own."""
    words = ["<unk>", *(f"<0x{value:02X}>" for value in range(256)), "<0xe9>", "<0xZZ>"]
    words += ["▁a", "▁", "b", "▁▁", "é▁", "日", "x▁y", " ", "<0x41"]
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["<call>", "▁q r", " z"])
    return tokenizer


LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
TOKENIZERS = {
    "demo": DEMO,
    "byte level": _byte_level(),
    "llama": _sentence_piece(decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)])),
    "strip two": _sentence_piece(decoders.Sequence([*LLAMA, decoders.Strip(" ", 2, 0)])),
    "gemma": _sentence_piece(decoders.Sequence(LLAMA)),
    "metaspace": _sentence_piece(decoders.Metaspace()),
    "metaspace, no prefix": _sentence_piece(decoders.Metaspace(prepend_scheme="never")),
    "none": _sentence_piece(None),
}


def ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids: bytes that fit together now and then, what was added last, and what no tokenizer has."""
    size = tokenizer.get_vocab_size()
    lead = [at for at in range(min(size, 260)) if tokenizer.decode([at]) == "\ufffd"]
    one = st.integers(0, size + 3) | st.integers(max(size - 30, 0), size + 3)
    return st.lists(one | st.sampled_from(lead) if lead else one, max_size=16)


def pieces(decoder: TextDecoder, token_ids: list[int]) -> list[str]:
    return [*map(decoder.step, token_ids), decoder.finish()]


ALL = pytest.mark.parametrize("name", TOKENIZERS)


@ALL
@given(data=st.data(), skip=st.booleans())
def test_the_pieces_are_the_whole(name: str, data: st.DataObject, skip: bool) -> None:
    """The pieces and the end together are the tokenizer's own decoding, whatever the ids."""
    tokenizer = TOKENIZERS[name]
    token_ids = data.draw(ids(tokenizer))
    expected = tokenizer.decode(token_ids, skip_special_tokens=skip)
    actual = "".join(pieces(TextDecoder(tokenizer, skip), token_ids))

    assert expected == actual


@ALL
@given(data=st.data())
def test_a_successor_gives_the_same_pieces(name: str, data: st.DataObject) -> None:
    """A process that takes over at any token, and feeds the ids before it, goes on with the same pieces."""
    tokenizer = TOKENIZERS[name]
    token_ids = data.draw(ids(tokenizer))
    cut = data.draw(st.integers(0, len(token_ids)))
    successor = TextDecoder(tokenizer)
    for token_id in token_ids[:cut]:
        successor.step(token_id)
    expected = pieces(TextDecoder(tokenizer), token_ids)[cut:]
    actual = pieces(successor, token_ids[cut:])

    assert expected == actual


@ALL
def test_what_is_spelled_before_it_is_met_is_the_same(name: str) -> None:
    """A detokenizer begins with the commonest ids; another one may meet each of them for the first time."""
    kind = TOKENIZERS[name]
    learned, met = Tokenizer.from_str(kind.to_str()), Tokenizer.from_str(kind.to_str())
    learn(learned)

    for token_id in range(kind.get_vocab_size()):
        assert pieces(TextDecoder(met), [token_id] * 2) == pieces(TextDecoder(learned), [token_id] * 2)


@given(st.text(max_size=40))
@example("<|im_start|>")
def test_text_is_given_as_soon_as_it_is_text(text: str) -> None:
    """Of well-formed text, at most the bytes of one character wait for the next token."""
    decoder, shown, fed = TextDecoder(DEMO, skip_special=False), "", b""
    for token_id in DEMO.encode(text).ids:
        shown += decoder.step(token_id)
        fed += bytes(_byte_of(char) for char in DEMO.id_to_token(token_id) or "")

        assert fed.decode(errors="ignore") == shown
    assert text == shown + decoder.finish()


def _byte_of(char: str) -> int:
    """The byte behind a printable stand-in, by GPT-2's rule: the unprintable ones follow 255 in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return ord(char) if ord(char) < 256 else [at for at in range(256) if at not in plain][ord(char) - 256]


def test_an_unfinished_character_is_told_at_the_end() -> None:
    """Bytes that never became a character are one U+FFFD, once, when the answer ends."""
    decoder = TextDecoder(DEMO)
    unfinished = [DEMO.get_vocab()[char] for char in BYTE_LEVEL.pre_tokenize_str("🦆")[0][0][:3]]

    assert [decoder.step(token_id) for token_id in unfinished] == ["", "", ""]
    assert [decoder.finish(), decoder.finish()] == ["\ufffd", ""]


def test_special_tokens_are_skipped_or_told() -> None:
    """Only special tokens are silent: a client must see the tool calls."""
    token_ids = DEMO.encode("<tool_call>x</tool_call><|im_end|>").ids

    assert "".join(pieces(TextDecoder(DEMO), token_ids)) == "<tool_call>x</tool_call>"
    assert (
        "".join(pieces(TextDecoder(DEMO, skip_special=False), token_ids))
        == "<tool_call>x</tool_call><|im_end|>"
    )


@pytest.mark.parametrize("token_id", [-1, 4096, 2**31, 2**32, 2**64])
def test_an_id_that_is_no_token_writes_nothing(token_id: int) -> None:
    """A model has more rows than its tokenizer has tokens; an id from there must end nothing."""
    decoder = TextDecoder(DEMO)

    assert [*map(decoder.step, (DEMO.encode("a").ids[0], token_id, DEMO.encode("a").ids[0]))] == [
        "a",
        "",
        "a",
    ]


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece,
        decoders.CTC,
        lambda: decoders.Strip(" ", 1, 0),
        lambda: decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        lambda: decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]),
    ],
)
def test_a_decoder_that_needs_the_whole_text_is_refused(decoder: Callable[[], decoders.Decoder]) -> None:
    """Better no answer than one that differs from the tokenizer's own decoding."""
    with pytest.raises(ValueError, match="cannot be followed token by token"):
        TextDecoder(_sentence_piece(decoder()))


def test_a_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    """A missing, broken or outlying tokenizer.json is a readable start-up error."""
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(Path("models/demo/tokenizer.json").resolve())
    with pytest.raises(ValueError, match=r"tokenizer\.json: leads out of its folder"):
        load_tokenizer(folder)
