"""What a request wants its answer to be: all that its grammar is made of."""

from typing import Any

import msgspec

from millrace.messages import Chat, Form, Voice


class Wish(msgspec.Struct, array_like=True, frozen=True):
    form: Form | None
    chat: Chat | None  # its tools, and what is said of them
    voice: Voice
    begun: bool  # the prompt ends inside of reasoning

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Those that may be called."""
        if self.chat is None or not self.chat.tools:
            return []
        functions = [tool["function"] for tool in msgspec.json.decode(self.chat.tools)]
        return [f for f in functions if not self.chat.callable or f["name"] in self.chat.callable]

    @property
    def free(self) -> bool:
        """Whether nothing has to be kept to."""
        if self.form is not None:
            return False
        chat = self.chat
        held = chat is not None and (chat.must_call or chat.callable)
        return not held and not any(tool.get("strict") for tool in self.tools)
