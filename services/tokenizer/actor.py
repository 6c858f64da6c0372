"""The tokenizer's I/O: a prompt in, a job in the queue, an answer that says where or why not."""

import asyncio
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from millrace import messages as m
from millrace import models, pooling, settings
from millrace.actor import Actor
from millrace.bus import ENDS, Bus, Inbox
from millrace.errors import Code, Failure
from millrace.jetstream import JetStream
from millrace.messages import Here, Message, Voice
from millrace.subjects import JOBS, TOKENIZER, Role, lane_of, model_key
from millrace.telemetry import Context
from millrace.wall import wall
from services.tokenizer.encode import Encoder
from services.tokenizer.trial import Trial
from services.tokenizer.voice import idle, thinking
from services.tokenizer.wish import Wish

STORE_S = 1.0
"""A full disk answers nothing at all, and a healthy store answers in milliseconds."""

LARGEST = JOBS.max_msg_size
"""NATS carries a little more than this, and drops what is larger."""

SPELLED = 48
"""Bytes that a token's odds take in a message, its spelling with them: few are longer than that."""

Told = TypeVar("Told", m.Encoded, m.Decoded)

ANY = "a"
"""A text that no tokenizer fails for."""

CREDIT = 32
"""Prompts under way at once: rendering holds the process, but waiting for the store does not."""


async def build(bus: Bus, given: settings.Tokenizer, id: str) -> "TokenizerActor":
    folder = models.find(given.model, given.models)
    max_len = folder.max_len
    encoder = await asyncio.to_thread(Encoder.load, folder.text)
    encoder.encode(ANY)  # the library starts its threads: where it may not, this ends before it is asked
    speaks = encoder.voice(calls=given.tool_parser, reasoning=given.reasoning_parser)
    if folder.vectors:
        speaks = Voice()
        max_len = min(max_len, pooling.most(folder.folder) or max_len)
    max_len = min(max_len, given.max_len or max_len)
    # Some tokenizers have more words than their model: what it has no row for would end its engine.
    vocab = min(encoder.vocab_size, folder.vocab or encoder.vocab_size)
    return TokenizerActor(bus, id, folder.name, encoder, vocab, max_len, speaks, folder.text, folder.vectors)


class TokenizerActor(Actor):
    role = Role.TOKENIZER

    def __init__(
        self,
        bus: Bus,
        id: str,
        name: str,
        encoder: Encoder,
        vocab: int,
        max_len: int,
        voice: Voice,
        folder: Path,
        vectors: int,
    ):
        super().__init__(bus, id)
        self._stored = JetStream(bus)
        self._name = name
        self._key = model_key(name)
        self._encoder = encoder
        self._vocab = vocab
        self._max_len = max_len
        self._voice = voice
        self._vectors = vectors
        self._under_way = 0
        self._trial = Trial(folder)

    async def start(self) -> None:
        self.spawn(self._trial.prepare())
        subject = TOKENIZER.to(self._key)
        await self.bus.listen(Inbox(subject, m.ToTokenizer, self._asked, queue="tokenizers", credit=CREDIT))

    def here(self, state: str, pid: int) -> Here:
        counts = dict(self.bus.counts)
        return Here(
            self.role,
            self.id,
            pid,
            state,
            self._under_way,
            CREDIT,
            self._name,
            self._max_len,
            counts,
            self._voice,
            vectors=self._vectors,
        )

    async def stop(self) -> None:
        await self._trial.stop()
        await super().stop()

    async def drain(self) -> None:
        """`Bus.close` stops hearing, then waits for what is under way."""

    async def _asked(self, asked: m.ToTokenizer, context: Context) -> Message:
        self._under_way += 1
        try:
            if self.broken.done():
                raise Failure(Code.UNAVAILABLE, "this tokenizer is ending", retry_after=1.0)
            match asked:
                case m.Prompt():
                    return await self._admit(asked, context)
                case m.Encode():
                    return self._encoded(asked)
                case m.Decode():
                    ids = list(struct.unpack(f"<{len(asked.ids) // 4}I", asked.ids))
                    self._known(ids, "tokens")
                    return _tellable(m.Decoded(self._encoder.decode(ids)))
        except Failure as failure:
            request = asked.request if isinstance(asked, m.Prompt) else ""
            return m.Refused(request, failure.code, failure.message, failure.param)
        except ENDS:
            raise
        except BaseException:
            self._try_out()
            raise
        finally:
            self._under_way -= 1

    def _try_out(self) -> None:
        """After a defect. A text that brought it about harms itself alone. A library that fails for any text
        from then on, as after some panics, works again in another process only: this one ends."""
        try:
            self._encoder.encode(ANY)
        except ENDS:
            raise
        except BaseException as error:
            self.fail(error)

    async def _admit(self, prompt: m.Prompt, context: Context) -> m.Admitted:
        heard = time.monotonic()
        ids = self._ids(prompt.input, prompt.asked or time.time(), cut=prompt.cut)
        echo = prompt.echo and prompt.logprobs >= 0
        if echo and len(ids) * (prompt.logprobs + 2) * SPELLED > LARGEST:
            most = LARGEST // ((prompt.logprobs + 2) * SPELLED)
            said = f"the prompt has {len(ids)} tokens: with 'logprobs' at most {most} can be echoed"
            raise Failure(Code.INVALID_REQUEST, said, param="echo")
        if self._vectors:
            max_tokens = fits(len(ids), self._max_len)
        else:
            max_tokens = room(len(ids), prompt.max_tokens, self._max_len)
        self._known(prompt.stop_ids, "stop_token_ids")
        self._known(prompt.sampling.bias, "logit_bias")
        begun = isinstance(prompt.input, m.Chat) and thinking(self._voice, self._encoder.tail(ids))
        grammar = await self._grammar(prompt, begun)
        ends = {m.VECTOR} if self._vectors else frozenset() if prompt.ignore_eos else self._encoder.eos_ids
        stop_ids = sorted({*prompt.stop_ids, *ends})
        job = m.Job(
            prompt.request,
            prompt.attempt,
            struct.pack(f"<{len(ids)}I", *ids),
            prompt.sampling,
            max_tokens,
            prompt.min_tokens,
            stop_ids,
            prompt.tenant,
            prompt.logprobs,
            grammar,
            echo,
        )
        # Asked twice, stored once: the gateway repeats a prompt whose answer it never got.
        lane = lane_of(self._key, prompt.tenant, prompt.priority)
        msg_id = f"{prompt.request}:{prompt.attempt}"
        made = time.monotonic()
        seq = await self._stored.store(lane.subject, job, msg_id, STORE_S, context)
        stored = time.monotonic()
        hops = [
            m.Hop("tokenize", wall(heard), wall(made), notes={"tokens": len(ids)}),
            m.Hop("publish", wall(made), wall(stored), notes={"seq": seq}),
        ]
        text = self._text(prompt.input, ids) if prompt.echo else ""
        return m.Admitted(prompt.request, seq, len(ids), max_tokens, begun, self.id, hops, text)

    async def _grammar(self, prompt: m.Prompt, begun: bool) -> str:
        chat = None
        if isinstance(prompt.input, m.Chat) and prompt.input.tools:
            chat = structs.replace(prompt.input, messages=b"", template_args=b"", effort="")
        # A completion is raw text, to a model that reasons too.
        voice = self._voice if isinstance(prompt.input, m.Chat) else Voice()
        wish = Wish(prompt.form, chat, voice, begun)
        return "" if wish.free else await self._trial.grammar(wish)

    def _text(self, given: m.Chat | m.Text | m.Ids, ids: list[int]) -> str:
        return given.text if isinstance(given, m.Text) else self._encoder.decode(ids)

    def _encoded(self, asked: m.Encode) -> m.Encoded:
        if isinstance(asked.input, m.Chat):
            ids = self._chat(asked.input, time.time(), add_generation_prompt=asked.add_generation_prompt)
        else:
            ids = self._encoder.encode(asked.input.text, add_special_tokens=asked.add_special)
        if asked.want == "count":
            return m.Encoded(len(ids))
        texts = self._encoder.spellings(ids) if asked.want == "texts" else []
        return _tellable(m.Encoded(len(ids), struct.pack(f"<{len(ids)}I", *ids), texts))

    def _chat(
        self, given: m.Chat, asked: float, *, add_generation_prompt: bool = True, most: int | None = None
    ) -> list[int]:
        tools = _shown(given.tools) if given.tools else None
        if tools and not self._voice.calls:
            raise Failure(
                Code.INVALID_REQUEST,
                "this model has no form of tool calls that is known",
                param="tools",
            )
        args: dict[str, Any] = msgspec.json.decode(given.template_args) if given.template_args else {}
        return self._encoder.chat(
            msgspec.json.decode(given.messages),
            asked=asked,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            kwargs=self._effort(given.effort) | self._told(args),
            most=most,
        )

    def _ids(self, given: m.Chat | m.Text | m.Ids, asked: float, *, cut: bool = False) -> list[int]:
        match given:
            case m.Chat():
                ids, param = self._chat(given, asked, most=self._max_len), "messages"
            case m.Text():
                read = self._encoder.beginning if cut else self._encoder.encode
                ids, param = read(given.text, most=self._max_len), "prompt"
            case m.Ids():
                ids, param = given.ids, "prompt"
        if not ids:
            raise Failure(Code.INVALID_REQUEST, "the prompt is empty", param=param)
        self._known(ids, param)
        return ids

    def _known(self, ids: Iterable[int], param: str) -> None:
        if (last := max(ids, default=0)) >= self._vocab:
            raise Failure(
                Code.INVALID_REQUEST,
                f"token id {last} is outside the vocabulary of {self._vocab}",
                param=param,
            )

    def _told(self, args: dict[str, Any]) -> dict[str, Any]:
        """Those that say something to the template; it refuses what it does not know."""
        knows, voice = self._encoder.knows, self._voice
        return {name: value for name, value in args.items() if knows(name) or not idle(voice, name, value)}

    def _effort(self, effort: str) -> dict[str, Any]:
        """Of reasoning, as the template takes it: by name, or as a switch for all of it."""
        if not effort:
            return {}
        if self._encoder.knows("reasoning_effort"):
            return {"reasoning_effort": effort}
        if self._encoder.knows("enable_thinking"):
            return {"enable_thinking": effort != "none"}
        if effort == "none" and not self._voice.reasoning:
            return {}
        raise Failure(
            Code.INVALID_REQUEST,
            "'reasoning_effort' is nothing that this model's chat template knows",
            param="reasoning_effort",
        )


def _shown(tools: bytes) -> list[dict[str, Any]]:
    """The tools as the template shows them: how strictly they are held to is nothing to tell a model."""
    shown: list[dict[str, Any]] = msgspec.json.decode(tools)
    for tool in shown:
        tool["function"].pop("strict", None)
    return shown


def _tellable(answer: Told) -> Told:
    if len(m.encode(answer)) > LARGEST:
        raise Failure(Code.BODY_TOO_LARGE, f"the answer would be larger than {LARGEST} bytes")
    return answer


def fits(text: int, max_len: int) -> int:
    """How many tokens may be answered with a vector: one, which stands for it and takes no room."""
    if text > max_len:
        raise Failure(
            Code.CONTEXT_LENGTH_EXCEEDED,
            f"this model's context is {max_len} tokens; the input has {text}",
            param="prompt",
        )
    return 1


def room(prompt: int, wanted: int | None, max_len: int) -> int:
    """How many tokens may be answered; says both numbers when it does not fit.

    The parameter is named as a chat has it: the gateway knows what the client called it.
    """
    left = max_len - prompt
    if left < 1 or (wanted or 0) > left:
        asked = f" and {wanted} of answer" if wanted else ""
        raise Failure(
            Code.CONTEXT_LENGTH_EXCEEDED,
            f"this model's context is {max_len} tokens; the request has {prompt} tokens of prompt{asked}",
            param="max_completion_tokens" if left >= 1 else "messages",
        )
    return wanted if wanted is not None else left
