"""What a newcomer is told when the service is ready: where to click and what to paste."""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Welcome:
    url: str
    model: str
    program: str  # as its user calls it
    keyed: bool  # whether keys are asked for
    vectors: bool = False  # whether the model makes them, and no text

    def lines(self, columns: int = 0) -> list[str]:
        """None wider than so many columns, as half a command is worse than none; 0: as wide as they come."""
        key = "with a key of yours" if self.keyed else "with any key"
        told = [
            f"page      {self.url}/ui",
            *([] if self.vectors else [f"chat      {self.program} chat --url {self.url}"]),
            f"base_url  {self.url}/v1   for OpenAI clients, {key}",
        ]
        pasted = self._curl(columns)
        if _fits(pasted, columns):
            told += ["paste:", *pasted]
        return [line for line in told if _fits([line], columns)]

    def _curl(self, columns: int) -> list[str]:
        key = '-H "Authorization: Bearer $OPENAI_API_KEY" ' if self.keyed else ""
        if self.vectors:
            body = json.dumps({"model": self.model, "input": QUESTION}, ensure_ascii=False)
            return [f"curl {key}-d {shlex.quote(body)} {self.url}/v1/embeddings"]
        messages = [{"role": "user", "content": QUESTION}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}, ensure_ascii=False)
        command = f"curl {key}-d {shlex.quote(body)} {self.url}/v1/chat/completions"
        if _fits([command], columns):
            return [command]
        # JSON may be broken here, and a quoted argument of a shell too.
        before, name, after = command.rpartition(' "messages"')
        inner, bracket, end = after.rpartition("],")
        return [before, name + inner + bracket, end]


def _fits(lines: list[str], columns: int) -> bool:
    return not columns or all(len(line) <= columns for line in lines)


def program(called: str) -> str:
    """How to call this program again, from how it was called this time."""
    path = Path(called)
    if path.name != "millrace":
        return "python -m millrace"
    found = shutil.which("millrace")
    return "millrace" if found and Path(found).absolute() == path.absolute() else shlex.quote(called)
