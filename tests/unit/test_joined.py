"""An answer's head and its beginning are one write."""

import asyncio

from services.gateway.http.joined import Joined


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def is_closing(self) -> bool:
        return b"closed" in self.writes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.writes.append(b"closed")


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_head_goes_with_what_follows_it() -> None:
    """What comes after that goes by itself, and so does what comes before."""
    wire = Wire()
    joined = Joined(wire)
    for data in (CONTINUE, HEAD, b"one", b"two"):
        joined.write(data)
    await asyncio.sleep(0)

    assert [CONTINUE, HEAD + b"one", b"two"] == wire.writes


async def test_a_head_does_not_wait_for_what_does_not_come() -> None:
    """It goes with the next turn of the loop, and once."""
    wire = Wire()
    joined = Joined(wire)
    joined.write(HEAD)
    await asyncio.sleep(0)
    joined.write(b"late")

    assert [HEAD, b"late"] == wire.writes


async def test_a_head_is_not_lost_by_closing() -> None:
    """It is written first."""
    wire = Wire()
    joined = Joined(wire)
    joined.write(HEAD)
    joined.close()
    await asyncio.sleep(0)

    assert [HEAD, b"closed"] == wire.writes


async def test_a_head_is_for_nobody_once_the_client_has_gone() -> None:
    """To write it then is an error of the transport's."""
    wire = Wire()
    joined = Joined(wire)
    joined.write(HEAD)
    wire.close()
    await asyncio.sleep(0)

    assert [b"closed"] == wire.writes and joined.is_closing()
