"""Standard input, output and errors as every command needs them: there, and able to take every letter."""

import io
import os
import sys


def prepare() -> None:
    """What was closed becomes /dev/null, or the next file to be opened would take its number, and a process
    started later would have that for its input or output. What an output's encoding has no letters for is
    shown as a question mark, and what comes in stays the bytes that it was."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest free number is its own
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def mute() -> None:
    """Nothing more can be said there, at exit neither."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
