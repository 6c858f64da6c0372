"""Text and conversations become token ids, as the model's own tokenizer files say.

    Encoder
      load        a model folder: tokenizer.json, tokenizer_config.json and its chat templates
      encode      plain text for a raw completion; control tokens written in it count, as in the reference
      chat        a conversation; control tokens come from the template alone
    Controls      a model's control tokens, and where a client's text could be taken for one

A conversation is data from outside: whatever stands in a message, a tool or a template argument must
never become a control token, or a user could close his own turn and speak as the system. The reference
encodes the rendered text in one go and so cannot tell. Here

    1  an invisible random mark is put inside every control token's text that a client wrote, and into
       each end and beginning of a text that could become one beside another text
    2  the template is rendered, and the marks are taken out again, but their places are remembered
    3  a control token's text over such a place is the client's, and is encoded as ordinary characters

so that a conversation without such text is encoded exactly as by the reference, in one go.
"""

import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from millrace.errors import Code, Failure
from millrace.messages import Voice
from millrace.models import eos_ids, inside, templates, text_settings
from services.tokenizer import voice
from services.tokenizer.chat import ChatTemplate

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MARK_LENGTH = 8  # characters of 16 random bits each: nobody writes that by chance, or twice
PRIVATE_PLANE = 0xF0000  # private use: no letter, no white space, nothing that a template would change
TAIL = 8  # tokens: a tag that the template ended with, spelled out letter by letter, and white space
MAX_FORGED = 1000  # texts about a model quote its control tokens, but not so often; each costs microseconds
USUAL = 8  # characters a token: a text that has many more of them than fit is tried by its beginning
CUT = 256  # tokens by which a text that is cut off may have more than its beginning has in the whole
MAX_DEPTH = 64  # of a tool's schema; far below Python's own limit


class Controls:
    """A model's control tokens, as texts. One of a single character has no inside to mark; none has any."""

    def __init__(self, id_of: Mapping[str, int]):
        self.id_of = {text: token_id for text, token_id in id_of.items() if len(text) > 1}
        self.ids = frozenset(self.id_of.values())
        texts = sorted(self.id_of, key=len, reverse=True)  # the longest at a place wins, as in the reference
        self._pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        self._reach = max(map(len, texts), default=1) - 1
        self._heads = {text[:end] for text in texts for end in range(1, len(text))}
        self._tails = {text[start:] for text in texts for start in range(1, len(text))}
        self._firsts = {text[0] for text in texts}
        self._lasts = {text[-1] for text in texts}
        edges = re.escape("".join(sorted(self._firsts | self._lasts)))
        self._edge = re.compile(f"[{edges}]" if edges else "(?!)")

    def places(self, text: str) -> list[int]:
        """Where a client's text needs marks; mostly nowhere. White space is looked past: templates trim."""
        if not self._edge.search(text):  # nearly all texts: neither a first nor a last character of any
            return []
        places, at = [], 0
        while match := self._pattern.search(text, at):
            at = match.start() + 1
            places.append(at)
        end = len(text.rstrip())
        tail = text[max(end - self._reach, 0) : end]
        if not self._firsts.isdisjoint(tail) and any(tail[at:] in self._heads for at in range(len(tail))):
            places.append(end)
        start = len(text) - len(text.lstrip())
        head = text[start : start + self._reach]
        if not self._lasts.isdisjoint(head) and any(head[: at + 1] in self._tails for at in range(len(head))):
            places.append(start)
        return sorted(places)

    def spoken(self, text: str, marks: set[int]) -> list[re.Match[str]]:
        """The control tokens that the template wrote into a rendered text: no mark is inside of them."""
        if not marks:
            return list(self._pattern.finditer(text))
        spoken, at = [], 0
        while match := self._pattern.search(text, at):
            if marks.isdisjoint(range(match.start() + 1, match.end())):
                spoken.append(match)
                at = match.end()
            else:  # a client's text uses nothing up: it could hide the beginning of a real one
                at = match.start() + 1
        return spoken


class Encoder:
    """One model's text side. May be used by several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        controls: Iterable[str],
        templates: Mapping[str, ChatTemplate],
        eos_ids: frozenset[int],
    ):
        """`controls` are added tokens; `templates` has "default", perhaps "tool_use", or nothing."""
        self.eos_ids = eos_ids
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._tokenizer = tokenizer
        self._templates = templates
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token.content: token for token in added.values()}
        ids = {token.content: token_id for token_id, token in added.items()}
        self._controls = Controls({text: ids[text] for text in controls})
        self._lock = threading.Lock()  # encode_special_tokens is a state of the tokenizer, not of a call

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """From a model folder; a ValueError names the file that is missing, broken or outside of it."""
        config = text_settings(folder)
        tokenizer = _read_tokenizer(folder)
        try:
            _agree(tokenizer, config)
            special = _special_tokens(config)
            _end(tokenizer, config)
            ends = eos_ids(folder, tokenizer.token_to_id)
            return cls(
                tokenizer,
                controls=_controls(tokenizer, special, ends),
                templates=_templates(folder, config, special),
                eos_ids=ends,
            )
        except (AttributeError, KeyError, TypeError) as error:  # JSON, but not of the shape that it should be
            raise ValueError(f"{folder / 'tokenizer_config.json'}: {error!r}") from None

    def voice(self, *, calls: str, reasoning: str) -> Voice:
        """How the model speaks, where that is not set to something else than "auto"."""
        template = "\n".join(template.source for template in self._templates.values())
        ends = [token for id in self.eos_ids if (token := self._tokenizer.id_to_token(id))]
        return voice.of(template, calls=calls, reasoning=reasoning, controls=self._controls.id_of, ends=ends)

    def tail(self, ids: list[int]) -> str:
        """The end of a prompt's text, its control tokens too."""
        return self.decode(ids[-TAIL:])

    def knows(self, argument: str) -> bool:
        """Whether the chat template reads an argument of this name."""
        return any(argument in template.arguments for template in self._templates.values())

    def encode(self, text: str, *, add_special_tokens: bool = True, most: int | None = None) -> list[int]:
        """A raw completion's prompt, with what the tokenizer itself puts around a text (often a BOS).

        A text that has more than `most` tokens is a Failure, before all of it is encoded.
        """
        with self._lock:
            if most is not None:
                self._fits(text, most)
            return self._ids(text, add_special_tokens)

    def beginning(self, text: str, *, most: int) -> list[int]:
        """Like a text's, but of a longer one as many tokens as fit, with what stands around a text."""
        size = most * USUAL
        with self._lock:
            while size < len(text) and len(self._ids(text[:size])) - CUT < most:
                size *= 4
            inner, whole = self._ids(text[:size]), self._ids(text[:size], add_special_tokens=True)
        around = len(whole) - len(inner)
        if len(whole) <= most or around < 0:
            return whole[:most]
        before = next((at for at in range(around + 1) if whole[at : at + len(inner)] == inner), 0)
        return [*whole[:before], *inner[: most - around], *whole[before + len(inner) :]]

    def _fits(self, text: str, most: int) -> None:
        size = most * USUAL
        while size < len(text):
            least = len(self._ids(text[:size])) - CUT
            if least > most:
                raise Failure(
                    Code.CONTEXT_LENGTH_EXCEEDED,
                    f"this model's context is {most} tokens; the prompt has more than {least}",
                    param="messages",
                )
            size *= 4

    def decode(self, ids: list[int]) -> str:
        """The whole text, control tokens too."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def spellings(self, ids: list[int]) -> list[str]:
        """Each token as the vocabulary has it; empty where that has a hole."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        asked: float = 0.0,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> list[int]:
        """A conversation in the form of the OpenAI API; Failure where the template refuses it, or where it
        has more than `most` tokens."""
        template = (tools and self._templates.get("tool_use")) or self._templates.get("default")
        if template is None:
            raise Failure(Code.INVALID_REQUEST, "this model has no chat template", param="messages")
        given: tuple[Any, ...] = (for_template(messages), tools, dict(kwargs or {}))
        mark = ""
        if places := sum(len(self._controls.places(text)) for text in _texts(given)):
            if places > MAX_FORGED:
                raise Failure(
                    Code.INVALID_REQUEST,
                    f"the messages contain more than {MAX_FORGED} of this model's control tokens",
                    param="messages",
                )
            mark = "".join(chr(PRIVATE_PLANE + secrets.randbelow(0xFFFE)) for _ in range(MARK_LENGTH))
            given = tuple(self._marked(part, mark) for part in given)
        try:
            rendered = template.render(
                given[0],
                asked=asked,
                tools=given[1],
                add_generation_prompt=add_generation_prompt,
                kwargs=given[2],
            )
        except Failure as failure:  # a template's own words may quote what it was given
            raise Failure(failure.code, failure.message.replace(mark, ""), param=failure.param) from None
        text, marks = _unmarked(rendered, mark)
        spoken = self._controls.spoken(text, marks)
        ids = self.encode(text, add_special_tokens=False, most=most)
        if [token_id for token_id in ids if token_id in self._controls.ids] == [
            self._controls.id_of[match[0]] for match in spoken
        ]:
            return ids
        return self._encode_only(text, spoken)

    def _encode_only(self, text: str, spoken: list[re.Match[str]]) -> list[int]:
        """The ids of a text in which nothing but the spoken control tokens is one.

        What lies between is encoded piece by piece, so a tokenizer that treats the first word of a text
        in a special way does so for each: a blank more or less, only beside somebody's forged tokens.
        """
        ids: list[int] = []
        at = 0
        with self._lock:
            self._tokenizer.encode_special_tokens = True
            try:
                for match in spoken:
                    token = self._added[match[0]]
                    part = text[at : match.start()]
                    ids += self._ids(part.rstrip() if token.lstrip else part)
                    ids.append(self._controls.id_of[match[0]])
                    at = len(text) - len(text[match.end() :].lstrip()) if token.rstrip else match.end()
                ids += self._ids(text[at:])
            finally:
                self._tokenizer.encode_special_tokens = False
        if sum(token_id in self._controls.ids for token_id in ids) != len(spoken):
            raise Failure(
                Code.INVALID_REQUEST, "the messages contain this model's control tokens", param="messages"
            )
        return ids

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        # A quarter faster than `encode`: it does not work out where in the text each token lies.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def _marked(self, value: Any, mark: str) -> Any:
        if isinstance(value, str):
            places = self._controls.places(value)
            edges = zip([0, *places], [*places, None], strict=True)
            return mark.join(value[start:end] for start, end in edges) if places else value
        if isinstance(value, list):
            return [self._marked(item, mark) for item in value]
        if isinstance(value, dict):
            return {self._marked(key, mark): self._marked(item, mark) for key, item in value.items()}
        return value


def for_template(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The API's messages as templates expect them, and as vLLM gives them: content is one text, and a
    tool call's arguments are an object, not its JSON."""
    return [_message(message) for message in messages]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise Failure(Code.INVALID_REQUEST, "this model reads only text", param="messages")
        content = "\n".join(part["text"] for part in content)
    ready = {**message, "content": "" if content is None else content}
    if calls := message.get("tool_calls"):
        ready["tool_calls"] = [_called(call) for call in calls]
    return ready


def _called(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):  # a model wrote them: it may have failed, and may be shown so
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _texts(given: Any) -> Iterator[str]:
    """All strings within, keys too."""
    level = [given]
    for _depth in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
        if not below:
            return
        level = below
    raise Failure(Code.INVALID_REQUEST, f"nested more than {MAX_DEPTH} deep", param="messages")


def _unmarked(rendered: str, mark: str) -> tuple[str, set[int]]:
    """The rendered text without its marks, and where they were."""
    if not mark:
        return rendered, set()
    parts = rendered.split(mark)
    return "".join(parts), set(accumulate(len(part) for part in parts[:-1]))


def _read_tokenizer(folder: Path) -> Tokenizer:
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
