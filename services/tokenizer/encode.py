"""Text and conversations become token ids, as the model's own tokenizer files say.

load        a model folder (files.py)
encode      plain text for a raw completion; control tokens written in it count, as in the reference
chat        a conversation; control tokens come from the template alone (controls.py)
"""

import json
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from millrace.errors import Code, Failure
from millrace.messages import Voice
from services.tokenizer import files, voice
from services.tokenizer.chat import ChatTemplate
from services.tokenizer.controls import Controls, unmarked

TAIL = 8  # tokens: a tag that the template ended with, spelled out letter by letter, and white space
USUAL = 8  # characters a token: a text that has many more of them than fit is tried by its beginning
CUT = 256  # tokens by which a text that is cut off may have more than its beginning has in the whole


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
        text = files.read(folder)
        return cls(text.tokenizer, controls=text.controls, templates=text.templates, eos_ids=text.eos_ids)

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
        given, mark = self._controls.marked((for_template(messages), tools, dict(kwargs or {})))
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
        text, marks = unmarked(rendered, mark)
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
