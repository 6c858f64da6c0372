"""From a client's request body to an `Ask`: defaults filled in, messages made plain."""

import hashlib
import secrets
from typing import Any

import msgspec
from msgspec import structs

from millrace.messages import Chat, Ids, Sampling, Text
from services.gateway.desk import Ask
from services.gateway.http.body import depth, refused
from services.gateway.surfaces.openai.forms import form
from services.gateway.surfaces.openai.wire import (
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_SEED,
    MAX_TOOL_DEPTH,
    Body,
    ChatBody,
    OneTool,
    SomeTools,
    TextBody,
    Tool,
    Turn,
)
from services.gateway.visit import Visit

DEFAULT_COMPLETION = 16
"""What `/v1/completions` gives without `max_tokens`, as OpenAI has it."""


UNTOLD = -1
"""No logprobs, of no token; with 0 only the token's own is told."""

MAX_DIGITS = 9
"""Of a token id: no vocabulary has more words."""


def chat(body: ChatBody, visit: Visit) -> Ask:
    limit, older = body.max_completion_tokens, body.max_tokens
    if limit is not None and older is not None and limit != older:
        raise refused("max_tokens", "'max_tokens' and 'max_completion_tokens' differ: send only one of them.")
    kwargs = body.chat_template_kwargs or {}
    if not depth(kwargs, MAX_DEPTH):
        raise refused("chat_template_kwargs", f"'chat_template_kwargs' is nested deeper than {MAX_DEPTH}.")
    asked = Chat(
        messages=msgspec.json.encode([_plain(turn, index) for index, turn in enumerate(body.messages)]),
        template_args=msgspec.json.encode(kwargs) if kwargs else b"",
        # Models have been shown no more than that.
        effort="xhigh" if body.reasoning_effort == "max" else body.reasoning_effort or "",
        **_tools(body),
    )
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true.")
    told = (body.top_logprobs or 0) if body.logprobs else UNTOLD
    return _ask(body, asked, limit if limit is not None else older, visit, logprobs=told)


def completion(body: TextBody, visit: Visit) -> list[Ask]:
    """One for each prompt."""
    limit = body.max_tokens if body.max_tokens is not None else DEFAULT_COMPLETION
    if limit == 0 and not body.echo:
        raise refused("max_tokens", "'max_tokens' is 0: that needs 'echo', or there is nothing to answer.")
    told = UNTOLD if body.logprobs is None else body.logprobs
    n = body.n or 1
    of = body.best_of or n
    if of < n:
        raise refused("best_of", f"'best_of' is {of}, less than 'n', which is {n}.")
    if of > n:
        if body.stream:
            raise refused("best_of", "'best_of' beyond 'n' cannot be streamed: which are best is known last.")
        told = max(told, 0)
    prompts = _prompts(body.prompt)
    return [_ask(body, prompt, limit, visit, logprobs=told, echo=bool(body.echo)) for prompt in prompts]


def choices(asks: list[Ask], each: int) -> list[Ask]:
    """So many answers to each of these. The first has the request's seed, the others' are made of it."""
    if len(asks) * each > MAX_CHOICES:
        raise refused(
            "n" if each > 1 else "prompt",
            f"{len(asks)} prompts with {each} answers each are more than {MAX_CHOICES} answers.",
        )
    return [_sibling(ask, index) for ask in asks for index in range(each)]


def _sibling(ask: Ask, index: int) -> Ask:
    if not index:
        return ask
    return structs.replace(
        ask, sampling=structs.replace(ask.sampling, seed=sibling_seed(ask.sampling.seed, index))
    )


def sibling_seed(seed: int, index: int) -> int:
    """A part of the interface: with it, any one of several answers can be asked for again by itself."""
    if not index:
        return seed
    digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _ask(
    body: Body,
    asked: Chat | Text | Ids,
    limit: int | None,
    visit: Visit,
    *,
    logprobs: int = UNTOLD,
    echo: bool = False,
) -> Ask:
    least = body.min_tokens or 0
    if limit is not None and least > limit:
        raise refused(
            "min_tokens", f"'min_tokens' is {least}, more than the {limit} tokens asked for at most."
        )
    calls: int | None = 0
    if isinstance(asked, Chat) and asked.tools:
        calls = 1 if asked.one_call else None
    return Ask(
        model=body.model,
        input=asked,
        sampling=_sampling(body),
        max_tokens=limit,
        min_tokens=least,
        stop_ids=body.stop_token_ids or [],
        ignore_eos=bool(body.ignore_eos),
        stops=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        include_stop=bool(body.include_stop_str_in_output),
        keep_special=body.skip_special_tokens is False,
        logprobs=logprobs,
        echo=echo,
        visit=visit,
        calls=calls,
        form=form(body),
    )


def _tools(body: ChatBody) -> dict[str, Any]:
    """What a `Chat` says of tools. With `none` the model is not told of them, so that it calls none."""
    tools, choice = body.tools or [], body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise refused("tool_choice", "'tool_choice' needs 'tools' to choose from.")
        return {}
    names = [tool.function.name for tool in tools]
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        if tool.function.name in names[:index]:
            raise refused(f"{where}.name", f"Two tools have the name '{tool.function.name}'.")
        if not depth(tool.function.parameters, MAX_TOOL_DEPTH):
            raise refused(
                f"{where}.parameters", f"'{where}.parameters' is nested deeper than {MAX_TOOL_DEPTH}."
            )
        if tool.function.parameters and tool.function.parameters.get("type", "object") != "object":
            raise refused(f"{where}.parameters", f"'{where}.parameters' is not the schema of an object.")
    if choice == "none":
        return {}
    must, allowed = choice == "required", []
    match choice:
        case OneTool(function):
            must, allowed = True, [function.name]
        case SomeTools(some):
            must, allowed = some.mode == "required", [tool.function.name for tool in some.tools]
            if not allowed:
                raise refused("tool_choice", "'tool_choice' allows no tool: say 'none'.")
    for name in allowed:
        if name not in names:
            raise refused("tool_choice", f"'tool_choice' names '{name[:64]}', which is not in 'tools'.")
    strict = any(tool.function.strict for tool in tools if not allowed or tool.function.name in allowed)
    if (must or allowed or strict) and (body.ignore_eos or body.min_tokens):
        name = "ignore_eos" if body.ignore_eos else "min_tokens"
        held = "a 'tool_choice' that says" if must or allowed else "strict 'tools', whose calls say"
        raise refused(name, f"'{name}' cannot be kept to with {held} where to end.")
    return {
        "tools": msgspec.json.encode([{"type": "function", "function": _spec(tool)} for tool in tools]),
        "must_call": must,
        "callable": allowed,
        "one_call": body.parallel_tool_calls is False or isinstance(choice, OneTool),
    }


def _spec(tool: Tool) -> dict[str, Any]:
    """What the client said of it, in the order that models were shown."""
    spec = tool.function
    said: dict[str, Any] = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    if spec.strict:
        said["strict"] = True
    return {key: value for key, value in said.items() if value is not None}


def _sampling(body: Body) -> Sampling:
    # Without a seed of the client's the choice is still a function of one: a resumed answer repeats it.
    seed = secrets.randbits(63) if body.seed is None else body.seed & MAX_SEED
    top_p = 1.0 if body.top_p is None else body.top_p
    # No mass at all means the likeliest token alone, as OpenAI has it.
    top_k = max(body.top_k or 0, 0) if top_p else 1
    return Sampling(
        seed,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=top_p or 1.0,
        top_k=top_k,
        min_p=body.min_p or 0.0,
        presence=body.presence_penalty or 0.0,
        frequency=body.frequency_penalty or 0.0,
        repetition=body.repetition_penalty or 1.0,
        bias=_bias(body.logit_bias or {}),
    )


def _bias(given: dict[str, float]) -> dict[int, float]:
    """JSON has only strings for keys: they are token ids here."""
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= MAX_DIGITS):
            raise refused("logit_bias", f"'{key[:40]}' in 'logit_bias' is not a token id.")
        bias[int(key)] = value
    return bias


def _prompts(prompt: str | list[int | str | list[int]]) -> list[Text | Ids]:
    match prompt:
        case str():
            return [Text(prompt)]
        case [int(), *_]:
            return [_ids(prompt)]
        case []:
            raise refused("prompt", "'prompt' is empty.")
    return [_prompt(each, type(prompt[0])) for each in prompt]


def _prompt(prompt: str | list[int] | int, kind: type) -> Text | Ids:
    if not isinstance(prompt, kind):
        raise refused("prompt", "'prompt' mixes strings with token ids.")
    return _ids(prompt) if isinstance(prompt, list) else Text(str(prompt))


def _ids(prompt: list[Any]) -> Ids:
    if not prompt:
        raise refused("prompt", "'prompt' is empty.")
    if not all(isinstance(token, int) for token in prompt):
        raise refused("prompt", "'prompt' mixes token ids with something else.")
    return Ids(prompt)


def _plain(turn: Turn, index: int) -> dict[str, Any]:
    """A message as chat templates expect it: one string, and no role they have not heard of."""
    said: dict[str, Any] = {
        "role": "system" if turn.role == "developer" else turn.role,
        "content": _content(turn, f"messages[{index}].content"),
    }
    for key in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(turn, key)) is not None:
            said[key] = value
    if turn.reasoning is not None:
        said.setdefault("reasoning_content", turn.reasoning)
    if turn.tool_calls:
        if turn.role != "assistant":
            raise refused(f"messages[{index}].tool_calls", "Only an assistant's message has 'tool_calls'.")
        said["tool_calls"] = [
            {"id": call.id, "type": call.type, "function": call.function} for call in turn.tool_calls
        ]
    return said


def _content(turn: Turn, where: str) -> str:
    if isinstance(turn.content, str):
        return turn.content
    if turn.content is None:
        if turn.role == "assistant" and turn.tool_calls:
            return ""  # templates add it to strings
        raise refused(where, f"Missing parameter: '{where}'.")
    texts = []
    for index, part in enumerate(turn.content):
        if part.type != "text":
            raise refused(
                f"{where}[{index}]",
                f"'{where}[{index}]' is of type '{part.type[:40]}': only text is supported.",
            )
        if part.text is None:
            raise refused(f"{where}[{index}].text", f"Missing parameter: '{where}[{index}].text'.")
        texts.append(part.text)
    return "\n".join(texts)  # as vLLM joins them
