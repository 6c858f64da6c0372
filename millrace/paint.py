"""Colour on a terminal, for those who want it: NO_COLOR says who does not."""

import os
from collections.abc import Callable
from typing import TextIO


def wanted(out: TextIO) -> bool:
    return out.isatty() and not os.environ.get("NO_COLOR")


def brush(colour: bool) -> Callable[[str, str], str]:
    """Gives a text the colour of a code, if there is a code, and something to be seen."""

    def painted(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour and code and text.strip() else text

    return painted
