"""The process in which grammars are made and tried (trial.py): wishes on its standard input, verdicts out."""

import re
import resource
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
from msgspec import structs

from millrace.grammar import MAX_CHARS, GrammarError, Grammars
from services.tokenizer.constrain import grammar
from services.tokenizer.trial import TRY_S, Verdict
from services.tokenizer.wish import Wish

MEMORY = 1 << 30
"""Beyond what its tokens take."""

POSITION = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
"""In the grammar that was made of it, which its author has never seen."""


def main(folder: Path) -> None:
    grammars = Grammars(folder)
    with suppress(ValueError):
        _ = grammars.tokens  # if that fails, it does at every wish, which says why
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    wishes = msgspec.msgpack.Decoder(Wish)
    _say(sys.stdout.buffer, Verdict(""))
    while head := sys.stdin.buffer.read(4):
        wish = wishes.decode(sys.stdin.buffer.read(*struct.unpack("<I", head)))
        signal.setitimer(signal.ITIMER_PROF, TRY_S)  # it is ended then, with or without its parent
        verdict = judge(wish, grammars)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(sys.stdout.buffer, verdict)


def judge(wish: Wish, grammars: Grammars) -> Verdict:
    """Its grammar, if it can be begun with; else why not, and whose fault it is."""
    wrong = _wrong(wish, grammars)
    if isinstance(wrong, Verdict):
        return wrong
    if wish.form is not None and not isinstance(_wrong(structs.replace(wish, chat=None), grammars), Verdict):
        return Verdict("", wrong, wish.form.param)
    if wish.chat is not None:
        for index, tool in enumerate(msgspec.json.decode(wish.chat.tools)):
            alone = structs.replace(wish.chat, callable=[tool["function"]["name"]], must_call=True)
            reason = _wrong(structs.replace(wish, chat=alone), grammars)
            if not isinstance(reason, Verdict):
                return Verdict("", reason, f"tools[{index}].function.parameters")
    return Verdict("", wrong)


def _wrong(wish: Wish, grammars: Grammars) -> Verdict | str:
    try:
        text = grammar(wish, grammars.special)
        if len(text) > MAX_CHARS:
            return f"it is longer than {MAX_CHARS} characters"
        grammars.matcher(text)
    except GrammarError as error:
        return POSITION.sub("", str(error))
    except (AttributeError, KeyError, TypeError, RecursionError):  # JSON, but not of a schema's shape
        return "it is no JSON schema"
    return Verdict(text)


def _say(out: IO[bytes], verdict: Verdict) -> None:
    raw = msgspec.msgpack.encode(verdict)
    out.write(struct.pack("<I", len(raw)) + raw)
    out.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
