"""A client that also knows when its bytes were at its socket: the kernel stamps what comes in.

How long a client takes to wake up, and to read its other connections first, is no time of the pipeline's.
"""

import asyncio
import socket
import struct
import time

from bench.load import Heard

SO_TIMESTAMPNS = 35  # asm-generic/socket.h
STAMP = struct.Struct("@qq")  # seconds and nanoseconds of the wall clock

DRIFT_NS = 20_000
"""The clocks' difference is found within a microsecond or two; more than this, and one of them was set."""


class Landed(Heard):
    """One request on a connection of its own. It is read by hand: a transport does not pass on a stamp."""

    def __init__(self, request: bytes):
        super().__init__(request)
        self._stamps: list[int] = []  # one a read: when the last of its bytes came, by the wall clock

    async def ask(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        self.asked_ns = time.monotonic_ns()
        await loop.sock_sendall(sock, self.request)
        loop.add_reader(sock, self._read, sock)

    def _read(self, sock: socket.socket) -> None:
        try:
            data, told, _, _ = sock.recvmsg(1 << 14, socket.CMSG_SPACE(STAMP.size))
        except BlockingIOError:
            return
        except OSError:
            data, told = b"", []
        if data:
            self.data_received(data)
            self._stamps += [s * 10**9 + ns for s, ns in (STAMP.unpack(stamp) for _, _, stamp in told)]
        else:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
            self.connection_lost(None)

    def at_socket(self, ahead_ns: int) -> Heard:
        """The same answer as if it had been read the moment it came. Of what came in several parts and was
        read as one, the last part's time counts: no figure is smaller for it."""
        if len(self._stamps) != len(self.reads):
            raise RuntimeError("the kernel does not stamp what comes over TCP")
        at_once = Heard(self.request)
        at_once.asked_ns = self.asked_ns
        at_once.reads = [
            (stamp - ahead_ns, data) for stamp, (_, data) in zip(self._stamps, self.reads, strict=True)
        ]
        if any(landed > read for (landed, _), (read, _) in zip(at_once.reads, self.reads, strict=True)):
            raise RuntimeError("the wall clock was set while it was measured")
        return at_once


def ahead_ns() -> int:
    """How far the wall clock is ahead of the monotonic one, of several readings the least interrupted."""
    found = []
    for _ in range(50):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        found.append((after - before, wall - (before + after) // 2))
    return min(found)[1]


def steady(before_ns: int, after_ns: int) -> int:
    """How far it was ahead between two times of looking."""
    if abs(after_ns - before_ns) > DRIFT_NS:
        raise RuntimeError("the wall clock was set while it was measured")
    return (before_ns + after_ns) // 2
