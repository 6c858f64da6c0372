"""Train the demo model's tokenizer on our corpus: `python -m train.tokenizer`.

Byte-level BPE, so that no text is ever unknown: 256 bytes and the merges that shorten the corpus most.
Digits stay single, since a model this small learns sums only digit by digit. Written are

    tokenizer.json            the tokenizer itself
    tokenizer_config.json     its special tokens, its chat template and its length, as the reference has them

The same seed and corpus give the same bytes, so that a change of either shows in a diff.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from train.corpus import conversations

VOCAB_SIZE = 4096
MAX_LENGTH = 4096
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOOL_MARKS = ["<tool_call>", "</tool_call>"]  # single tokens, but ordinary text: clients must see them

# Contractions; a word with the sign before it; one digit; signs; line breaks; other white space.
WORDS = Regex(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'You may call these tools:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\nTo call one, answer with its name and arguments as JSON:\\n' }}
    {{- '<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": ' + (call.name | tojson) + ', "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def texts(seed: int, count: int) -> Iterator[str]:
    """What the merges are learned from: contents, and the JSON around tools. No special token is in it."""
    for messages, tools in conversations(seed, count):
        for message in messages:
            yield f"{message['role']}\n{message['content']}"
            yield from (json.dumps(call["function"]) for call in message.get("tool_calls", ()))
        yield from (json.dumps(tool) for tool in tools or ())
    yield (
        CHAT_TEMPLATE.translate({ord(sign): " " for sign in "{}%-'"}).replace("<|im_", " ").replace("|>", " ")
    )


def train(seed: int, count: int, *, progress: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TOOL_MARKS),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    tokenizer.train_from_iterator(texts(seed, count), trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in TOOL_MARKS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the corpus has words for only {tokenizer.get_vocab_size()} of {VOCAB_SIZE} tokens")
    return tokenizer


def config(tokenizer: Tokenizer) -> dict[str, object]:
    """tokenizer_config.json, as the reference reads it."""
    added = {
        str(token_id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "add_bos_token": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [TURN_START, TURN_END],
        "bos_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": MAX_LENGTH,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m train.tokenizer", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=20_000, help="conversations to learn from")
    options.add_argument("--out", type=Path, default=Path("models/demo"), help="the model's folder")
    chosen = options.parse_args()

    print(f"learning from {chosen.count} conversations, seed {chosen.seed}")
    tokenizer = train(chosen.seed, chosen.count, progress=True)
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config(tokenizer), indent=2, ensure_ascii=False),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (chosen.out / name).write_text(text + "\n", encoding="utf-8")
        print(f"wrote {chosen.out / name} ({len(text):,} characters)")

    sample = [content for content in texts(chosen.seed + 1, 500) if content]
    written = sum(len(text.encode()) for text in sample)
    tokens = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(sample))
    print(f"{written / tokens:.2f} bytes a token on other conversations")


if __name__ == "__main__":
    main()
