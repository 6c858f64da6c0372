"""The demo model, asked through the OpenAI SDK."""

from typing import Any

from openai import OpenAI

ASKED: Any = [{"role": "user", "content": "Tell me about water mills. Déjà vu?"}]
OWN = ["top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"]
OWN += ["include_stop_str_in_output", "skip_special_tokens", "return_token_ids"]


def completed(client: OpenAI, prompt: Any, **more: Any) -> Any:
    """Parameters that the SDK does not know travel as vLLM's users send them."""
    more.setdefault("seed", 5)
    extra = {"return_token_ids": True, **{name: more.pop(name) for name in OWN if name in more}}
    return client.completions.create(model="demo", prompt=prompt, extra_body=extra, **more)


def chatted(client: OpenAI, **more: Any) -> Any:
    more.setdefault("seed", 5)
    extra = {"return_token_ids": True, **{name: more.pop(name) for name in OWN if name in more}}
    return client.chat.completions.create(
        model="demo", messages=ASKED, max_tokens=more.pop("max_tokens", 12), extra_body=extra, **more
    )


def ids(made: Any, choice: int = 0) -> list[int]:
    found: list[int] = made.choices[choice].token_ids
    return found
