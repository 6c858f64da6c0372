"""How a model speaks, seen in its chat template."""

from pathlib import Path
from typing import Any

import pytest

from millrace.messages import Voice
from services.tokenizer import voice
from services.tokenizer.encode import Encoder

DEMO = Path(__file__).parents[2] / "models" / "demo"


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        ("{{ messages }}", "", ""),
        ("{{- '<tool_call>\\n{\"name\": ' }}", "hermes", ""),
        ("<tool_call>\n<function=example>", "", ""),  # another form inside of the same tags
        ("{{ '[TOOL_CALLS] [' }}", "mistral", ""),
        ('{{ \'{"name": "\' + name + \'", "parameters": \' }}', "llama3_json", ""),
        ("as [func_name1(params_name1=params_value1)]", "pythonic", ""),
        ("<tool_call> {% if enable_thinking %}<think>\n\n</think>", "hermes", "qwen3"),
        ("<\uff5cAssistant\uff5c>{{ content.split('</think>')[-1] }}", "", "deepseek_r1"),
    ],
)
def test_a_template_gives_it_away(template: str, calls: str, reasoning: str) -> None:
    """The forms by vLLM's names, or none."""
    assert Voice(calls, reasoning) == voice.of(template, calls="auto", reasoning="auto", controls=(), ends=())


def test_what_is_set_counts() -> None:
    """Whatever the template has."""
    template = "<tool_call></think>"
    given = voice.of(template, calls="none", reasoning="deepseek_r1", controls=(), ends=())

    assert Voice("", "deepseek_r1") == given


def test_tags_that_answers_do_not_show() -> None:
    """Where they are control tokens, the texts that end an answer are told: these are shown then too."""
    found = voice.of("[TOOL_CALLS]", calls="auto", reasoning="auto", controls=["[TOOL_CALLS]"], ends=["</s>"])

    assert Voice("mistral", "", ["</s>"]) == found


@pytest.mark.parametrize(
    ("reasoning", "prompt", "begun"),
    [
        ("qwen3", "<|im_start|>assistant\n", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("deepseek_r1", "<\uff5cAssistant\uff5c>", True),
        ("deepseek_r1", "<\uff5cAssistant\uff5c><think>\n\n</think>\n", False),
        ("", "<think>", False),
    ],
)
def test_where_an_answer_begins(reasoning: str, prompt: str, begun: bool) -> None:
    """Inside of reasoning that the prompt has opened, or outside."""
    assert begun == voice.thinking(Voice("", reasoning), prompt)


def test_the_shipped_model() -> None:
    """It calls as Hermes does, and does not reason."""
    assert Voice("hermes") == Encoder.load(DEMO).voice(calls="auto", reasoning="auto")


@pytest.mark.parametrize(
    ("reasoning", "name", "value", "idle"),
    [
        ("", "enable_thinking", False, True),
        ("", "thinking", None, True),
        ("", "enable_thinking", True, False),
        ("", "enable_thinking", 0, False),
        ("", "other", False, False),
        ("deepseek_r1", "enable_thinking", True, True),
        ("deepseek_r1", "enable_thinking", False, False),
    ],
)
def test_what_is_so_anyway_need_not_be_known(reasoning: str, name: str, value: Any, idle: bool) -> None:
    """To reason of a model that does, and not to of one that cannot; never the other way round."""
    assert idle == voice.idle(Voice("", reasoning), name, value)
