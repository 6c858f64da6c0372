"""Grammars are made and tried in a process of their own.

A grammar is a client's, and llguidance bounds most of what it may cost, but not all: one that takes too
long, too much memory or the stack ends that process (judge.py), and is refused. Nothing else notices.
"""

import asyncio
import contextlib
import hashlib
import signal
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import msgspec

from millrace.errors import Code, Failure
from services.tokenizer.wish import Wish

TRY_S = 0.8
"""Of processor time, so that a busy machine refuses nothing. Honest grammars take some milliseconds, the
largest of them a tenth of a second."""

LET_S = 20.0
"""For the process to start, and for a trial to come to its end, however busy the machine."""

WAIT_S = 4.0
"""Behind others' trials. Beyond this the client is asked to come again."""

KEPT = 256
"""Verdicts: the same wish is tried once."""

MAX_REPLY = 8 << 20

TOO_MUCH = "it takes more work than is allowed"


class Verdict(msgspec.Struct, array_like=True, frozen=True):
    grammar: str
    wrong: str = ""  # why there is none
    param: str = ""  # whose fault it is


encode = msgspec.msgpack.encode
_verdict = msgspec.msgpack.Decoder(Verdict)


class Trial:
    def __init__(self, folder: Path):
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()

    async def prepare(self) -> None:
        """So that the first wish need not wait for the process to start."""
        async with self._turn:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._started()

    async def grammar(self, wish: Wish) -> str:
        raw = encode(wish)
        key = hashlib.sha256(raw).digest()
        verdict = self._known.get(key)
        if verdict is None:
            verdict = await self._tried(raw)
            self._known[key] = verdict
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        if verdict.wrong:
            param = verdict.param or (wish.form.param if wish.form else "tools")
            raise Failure(Code.INVALID_REQUEST, f"'{param}' cannot be kept to: {verdict.wrong}", param=param)
        return verdict.grammar

    async def _tried(self, raw: bytes) -> Verdict:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise Failure(
                Code.UNAVAILABLE, "other requests' grammars are being tried", retry_after=1.0
            ) from None
        try:
            try:
                process = await self._started()
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                raise Failure(Code.UNAVAILABLE, "grammars cannot be tried now", retry_after=1.0) from None
            assert process.stdin is not None
            try:
                async with asyncio.timeout(LET_S):
                    process.stdin.write(struct.pack("<I", len(raw)) + raw)
                    return await _heard(process)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                # What takes too much ends by itself: by its own alarm, or for want of memory.
                if await self._end() != -signal.SIGKILL:
                    return Verdict("", TOO_MUCH)
                # It was paused until we ended it, or somebody killed it: that says nothing of the wish.
                raise Failure(
                    Code.UNAVAILABLE, "the grammar could not be tried now", retry_after=1.0
                ) from None
            except asyncio.CancelledError:
                await self._end()  # its answer would be taken for the next one's
                raise
        finally:
            self._turn.release()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is not None:
            self._process = None  # it died of something else: that says nothing of the next wish
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "services.tokenizer.judge", str(self._folder)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is for its parent
            )
            try:
                async with asyncio.timeout(LET_S):
                    await _heard(self._process)
            except BaseException:
                await self._end()
                raise
        return self._process

    async def _end(self) -> int:
        """How it ended, if not of this."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()

    async def stop(self) -> None:
        await self._end()


async def _heard(process: asyncio.subprocess.Process) -> Verdict:
    assert process.stdout is not None
    (size,) = struct.unpack("<I", await process.stdout.readexactly(4))
    return _verdict.decode(await process.stdout.readexactly(min(size, MAX_REPLY)))
