"""Tool calls that are JSON, in the three forms that models were taught."""

from services.gateway.speech.reader import SPACE, CallReader, Malformed, Reading


class Hermes(CallReader):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, and text around them. Qwen's form too."""

    def read(self) -> Reading[None]:
        begin, end = "<tool_call>", "</tool_call>"
        tag = yield from self.until((begin,), self.content)
        while tag:
            if tag == end:
                tag = yield from self.until((begin,), self.content, trim=True)
                continue
            self.held, first = begin, None
            try:
                if (yield from self.next_word()) != "{":
                    raise self.malformed()
                yield from self.json_call(bare=False)
            except Malformed as malformed:
                self.give_up()
                first = malformed.next
            # A call whose end was forgotten is one all the same; what stands before the end is said.
            tags = (begin, end) if first is None else (begin,)
            tag = yield from self.until(tags, self.content, first=first, trim=first is None)


class Llama3(CallReader):
    """`{"name": ..., "parameters": {...}}`, as the first thing in an answer; more of them after a `;`."""

    TAG = "<|python_tag|>"

    def read(self) -> Reading[None]:
        try:
            char = yield from self.next_word()
            if char == self.TAG[0]:
                for expected in self.TAG[1:]:
                    if (yield from self.next()) != expected:
                        raise self.malformed()
                char = yield from self.next_word()
            while char == "{":
                yield from self.json_call(bare=True)
                char = yield from self.next_word()
                if char == ";":
                    char = yield from self.next_word()
            raise self.malformed()
        except Malformed as malformed:
            if not (self.calls and self.held.isspace()):
                self.give_up()
            yield from self.rest(malformed.next)


class Mistral(CallReader):
    """`[TOOL_CALLS]` and a list of calls; or, in later models, one tag a call: `[TOOL_CALLS]name{...}`."""

    def read(self) -> Reading[None]:
        tag = yield from self.until(("[TOOL_CALLS]",), self.content)
        while tag:
            self.held, first = tag, None
            try:
                yield from self._calls()
            except Malformed as malformed:
                self.give_up()
                first = malformed.next
            tag = yield from self.until((tag,), self.content, first=first, trim=first is None)

    def _calls(self) -> Reading[None]:
        char = yield from self.next_word()
        if char == "[":
            while True:
                if (yield from self.next_word()) != "{":
                    raise self.malformed()
                yield from self.json_call(bare=False)
                char = yield from self.next_word()
                if char == "]":
                    self.held = ""
                    return
                if char != ",":
                    raise self.malformed()
        elif char == "{":
            yield from self.json_call(bare=False)
        else:
            yield from self._named(char)

    def _named(self, char: str) -> Reading[None]:
        """The name, perhaps `[CALL_ID]` with an id of its own making, perhaps `[ARGS]`, and the object."""
        said = ""
        while char != "{":
            if not (char.isalnum() or char in "_-.[]" or char in SPACE):
                raise self.malformed()
            said += char
            char = yield from self.next()
        name = said.removesuffix("[ARGS]").partition("[CALL_ID]")[0].strip()
        if not name or not name.replace("-", "_").replace(".", "_").isidentifier():
            raise self.malformed()
        yield from self.arguments(self.call(name))
