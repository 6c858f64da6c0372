"""An answer's head goes out in one write with what follows it.

uvicorn writes each by itself, and every write to a client that keeps up is a system call and a packet.
"""

import asyncio

CONTINUE = b"HTTP/1.1 100 "
"""What may be written before the head."""


class Joined(asyncio.Transport):
    """The transport of one answer. Nothing is held back longer than the event loop takes to come round."""

    def __init__(self, transport: asyncio.Transport):
        super().__init__()
        self._transport = transport
        self._begun = False
        self._head = b""  # not written yet
        self._soon: asyncio.Handle | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._head:
            self._put(data)
        elif self._begun or bytes(data[: len(CONTINUE)]) == CONTINUE:
            self._transport.write(data)
        else:
            self._begun, self._head = True, bytes(data)
            self._soon = asyncio.get_running_loop().call_soon(self._put, b"")

    def _put(self, more: bytes | bytearray | memoryview) -> None:
        if self._soon:
            self._soon.cancel()
            self._soon = None
        data, self._head = self._head + more, b""
        if not self._transport.is_closing():  # its client may have gone meanwhile
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._head:
            self._put(b"")
        self._transport.close()
