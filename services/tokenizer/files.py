"""What the files of a model folder say of its text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from millrace.models import eos_ids, inside, templates, text_settings
from services.tokenizer.chat import ChatTemplate

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Text:
    tokenizer: Tokenizer
    controls: list[str]  # added tokens that no client may write
    templates: dict[str, ChatTemplate]  # "default", perhaps "tool_use", or nothing
    eos_ids: frozenset[int]


def read(folder: Path) -> Text:
    """A ValueError names the file that is missing, broken or outside of the folder."""
    config = text_settings(folder)
    tokenizer = _tokenizer(folder)
    try:
        _agree(tokenizer, config)
        special = _special_tokens(config)
        _end(tokenizer, config)
        ends = eos_ids(folder, tokenizer.token_to_id)
        return Text(tokenizer, _controls(tokenizer, special, ends), _templates(folder, config, special), ends)
    except (AttributeError, KeyError, TypeError) as error:  # JSON, but not of the shape that it should be
        raise ValueError(f"{folder / 'tokenizer_config.json'}: {error!r}") from None


def _tokenizer(folder: Path) -> Tokenizer:
    path = inside(folder, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: not found") from None
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path}: {error}") from None
    # Settings of somebody's training run; the reference, too, sets them aside for every call.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The names a template may use: a text for each kind, and the list of additional ones."""
    given = {name: config.get(name) for name in NAMED_TOKENS}
    # Newer files have the list of those without a name there, where older ones have those with one.
    extra = config.get("extra_special_tokens") or {}
    additional = extra if isinstance(extra, list) else config.get("additional_special_tokens")
    if isinstance(extra, dict):
        given |= extra
    special: dict[str, Any] = {name: _content(token) for name, token in given.items() if token}
    if additional:
        special["additional_special_tokens"] = [_content(token) for token in additional]
    return special


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _agree(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        if tokenizer.token_to_id(token["content"]) != int(token_id):
            raise TypeError(f"token {token_id} is another one in tokenizer.json")


def _end(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Transformers 4's class for Llama lets the configuration say what stands around a text, whatever
    tokenizer.json says: the vector of some models is the state of the token that ends it."""
    if not (config.get("add_eos_token") and str(config.get("tokenizer_class")).startswith("LlamaTokenizer")):
        return
    first = _content(config["bos_token"]) if config.get("add_bos_token", True) else ""
    last = _content(config["eos_token"])
    known = [(text, tokenizer.token_to_id(text)) for text in (first, last) if text]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}".strip(), pair=None, special_tokens=known
    )


def _controls(tokenizer: Tokenizer, special: Mapping[str, Any], eos_ids: frozenset[int]) -> list[str]:
    """What a client may not write: the special tokens, and what the configuration uses as such.

    The latter are made special too, as the reference does: some are only words in tokenizer.json.
    """
    named = {tokenizer.id_to_token(token_id) for token_id in eos_ids}
    for value in special.values():
        named.update([value] if isinstance(value, str) else value)
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for text in sorted(text for text in named if text and tokenizer.token_to_id(text) is not None):
        token = added.get(text)
        if token is None or not token.special:
            sides = {"lstrip": token.lstrip, "rstrip": token.rstrip} if token else {}
            tokenizer.add_special_tokens([AddedToken(text, normalized=False, **sides)])
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def _templates(folder: Path, config: Mapping[str, Any], special: dict[str, Any]) -> dict[str, ChatTemplate]:
    """The chat templates by name: files of their own come before the configuration's."""
    files = {Path(name).stem: inside(folder, name) for name in templates(folder)}
    if (own := inside(folder, "chat_template.jinja")).exists():
        files["default"] = own
    path = folder / "tokenizer_config.json"
    made: dict[str, ChatTemplate] = {}
    try:
        if not files:
            given = config.get("chat_template") or []
            named = [{"name": "default", "template": given}] if isinstance(given, str) else given
            made = {item["name"]: ChatTemplate(item["template"], special_tokens=special) for item in named}
        for name, path in files.items():
            made[name] = ChatTemplate(path.read_text(encoding="utf-8"), special_tokens=special)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return made
