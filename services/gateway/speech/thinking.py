"""Reasoning: what stands before `</think>`, in the form of DeepSeek-R1 and Qwen3."""

from services.gateway.speech.parts import Reasoning
from services.gateway.speech.reader import SPACE, Reader, Reading

BEGIN, END = "<think>", "</think>"


class Thinking(Reader):
    """`begun`: the prompt has opened the reasoning, so the text begins inside of it."""

    def __init__(self, *, begun: bool):
        self._begun = begun
        self._thought = False
        super().__init__()

    def read(self) -> Reading[None]:
        if not self._begun:
            space = tag = ""
            char = yield
            while char and tag != BEGIN and (BEGIN.startswith(tag + char) or (char in SPACE and not tag)):
                space, tag = (space + char, tag) if char in SPACE else (space, tag + char)
                if tag == BEGIN:
                    break
                char = yield
            if tag != BEGIN:
                self.content(space + tag)
                yield from self.rest(char)
                return
        tags = BEGIN, END
        tag = yield from self.until(tags, self._think, trim=True)
        while tag == BEGIN:  # some begin it though the prompt has done so
            if self._thought:
                self._think(tag)
            tag = yield from self.until(tags, self._think, trim=not self._thought)
        if tag:
            yield from self.rest((yield from self.past_space()))

    def _think(self, text: str) -> None:
        self._thought = True
        self.say(Reasoning(text))
