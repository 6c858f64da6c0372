"""The text that the demo model is calibrated and measured on: `python -m train.calibration`.

Conversations as the model reads them, of every kind, from a seed that it was not trained with.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from services.tokenizer.encode import Encoder
from train.corpus import conversations

SEED = -1
TOKENS = 640  # enough to tell good from bad, and little to wait for where `millrace up` converts
LONGEST = 120  # tokens of a conversation: many subjects say more than one long one


def text(folder: Path) -> str:
    encoder, tokenizer = Encoder.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    made: list[int] = []
    for messages, tools in conversations(SEED, TOKENS):
        ids = encoder.chat(messages, tools=tools, add_generation_prompt=False)
        if len(ids) <= LONGEST:
            made += ids
        if len(made) >= TOKENS:
            break
    return str(tokenizer.decode(made, skip_special_tokens=False))


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m train.calibration")
    options.add_argument("--model", type=Path, default=Path("models/demo"))
    path = options.parse_args().model / "calibration.txt"
    path.write_text(text(path.parent), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
