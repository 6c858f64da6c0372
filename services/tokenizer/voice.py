"""How a model speaks, as its chat template gives it away: the form of its calls, and of its reasoning."""

from collections.abc import Iterable
from typing import Any

from millrace.messages import Voice

CALLS = (
    ("<function=", ""),  # inside of a hermes tag, but not JSON: nobody here reads it
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("func_name1(", "pythonic"),  # the instructions that Llama's pythonic templates give
    ('"parameters": ', "llama3_json"),
    ("<|python_tag|>", "llama3_json"),
)
"""What a template has, and what it tells; the first that is there counts."""

THINKING = "<think>", "</think>"
DEEPSEEK = "<\uff5cAssistant\uff5c>"
"""Its models think without having said so, where the template does not say it for them."""

SWITCHES = ("enable_thinking", "thinking")
"""Arguments by which templates let their models reason, or not."""


def of(template: str, *, calls: str, reasoning: str, controls: Iterable[str], ends: Iterable[str]) -> Voice:
    """`calls` and `reasoning` as they are set: `auto`, `none` or a form's name. `controls` are the control
    tokens that an answer does not show, `ends` those that end it."""
    if calls == "auto":
        calls = next((form for mark, form in CALLS if mark in template), "")
    if reasoning == "auto":
        reasoning = ""
        if THINKING[1] in template:
            reasoning = "deepseek_r1" if DEEPSEEK in template else "qwen3"
    calls, reasoning = (name.replace("none", "") for name in (calls, reasoning))
    hidden = calls == "mistral" and "[TOOL_CALLS]" in controls
    return Voice(calls, reasoning, sorted(ends) if hidden else [])


def thinking(voice: Voice, prompt: str) -> bool:
    """Whether the answer to this prompt, of which the end is enough, begins inside of reasoning."""
    begin, end = THINKING
    prompt = prompt.rstrip()
    if voice.reasoning == "deepseek_r1":
        return not prompt.endswith(end)
    return voice.reasoning != "" and prompt.endswith(begin)


def idle(voice: Voice, name: str, value: Any) -> bool:
    """Whether an argument asks for no more than what the model does anyway: its template need not know it."""
    return name in SWITCHES and (value is None or value is bool(voice.reasoning))
