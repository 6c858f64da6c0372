"""Clients that leave, or do not read; and a gateway that goes away."""

import asyncio
import os
import socket

import pytest

from services.gateway.desk import Ask, Piece
from tests.kit.desk import said, until
from tests.kit.face import LONG, STREAMED, Site, Start, error_of, request


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves(start: Start, stream: bool, reset: bool) -> None:
    """A client that goes away, politely or not, frees its slot at once, streaming or waiting."""
    site = await start([Piece(1, "a", "")], 60.0)
    reader, writer = await site.connect()
    writer.write(request(STREAMED | {"stream": stream}))
    async with asyncio.timeout(LONG):
        if stream:
            await reader.readuntil(b'"a"')
        await until(lambda: bool(site.desk.answers) and site.desk.answers[0].taken == 2)
        if reset:
            writer.transport.abort()
        else:
            writer.close()
        await site.desk.answers[0].cancelled.wait()


async def test_a_client_that_leaves_before_the_job_is_queued(start: Start) -> None:
    """The opening itself is cancelled then."""
    site = await start()
    opening, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(ask: Ask) -> None:
        opening.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    site.desk.opening = slow
    _, writer = await site.connect()
    writer.write(request(STREAMED))
    async with asyncio.timeout(LONG):
        await opening.wait()
        writer.close()
        await cancelled.wait()


async def test_a_client_that_sent_ahead_leaves(start: Start) -> None:
    """A client with a second request on the same connection frees the first one's slot as well."""
    site = await start([Piece(1, "a", "")], 0.01, *([[Piece(2, "b", "")], 0.01] * 1000))
    reader, writer = await site.connect()
    writer.write(request(STREAMED, headers="X: 1") + request(STREAMED, headers="X: 2"))
    async with asyncio.timeout(LONG):
        await reader.readuntil(b'"a"')
        writer.transport.abort()
        await site.desk.answers[0].cancelled.wait()

    assert 1 == len(site.desk.answers)


async def silent(site: Site, buffer: int = 4096) -> socket.socket:
    """A client that asks for a stream and reads nothing of it."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, ("127.0.0.1", site.serving.port))
    await loop.sock_sendall(slow, request(STREAMED))
    await until(lambda: bool(site.desk.answers))
    return slow


BLOCK = [Piece(1, "x" * 50_000, "")]


async def test_a_client_that_does_not_read(start: Start) -> None:
    """Its stream waits with little unread, and is closed after a while; others go on."""
    site = await start(*([BLOCK, 0.0] * 400), slow_reader=100_000, slow_reader_s=0.2)
    async with asyncio.timeout(LONG):
        with await silent(site):
            answer = site.desk.answers[0]
            site.desk.script = [said("fine")]
            other = await site.chat()
            await answer.cancelled.wait()

    assert 200 == other.status_code
    assert answer.taken < 800


async def test_a_client_that_does_not_read_the_end(start: Start) -> None:
    """Nor is the rest of a finished answer kept for a client that never takes it."""
    site = await start(*([BLOCK] * 400), said("end"), slow_reader=50_000_000, slow_reader_s=0.2)
    async with asyncio.timeout(LONG):
        with await silent(site):
            await site.desk.answers[0].cancelled.wait()
            before = site.serving.connections
            await until(lambda: site.serving.connections == 0)

    assert (401, 1) == (site.desk.answers[0].taken, before)


async def test_a_client_that_is_behind_but_reads(start: Start) -> None:
    """A client that reads slowly but steadily loses nothing, however far behind it is."""
    site = await start(*([BLOCK, 0.0] * 200), said("end"), slow_reader=100_000, slow_reader_s=3.0)
    received = bytearray()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LONG):
        with await silent(site, 1 << 16) as slow:
            while part := await loop.sock_recv(slow, 1 << 16):
                received += part
                await asyncio.sleep(0.02)

    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# Going away


async def test_stop_lets_streams_end(start: Start) -> None:
    """Within the grace a running stream ends as if nothing had happened; new requests are refused."""
    go = asyncio.Event()
    site = await start([Piece(1, "a", "")], go, said("b"))
    reader, writer = await site.connect()
    writer.write(request(STREAMED, headers="X-Kept: alive"))
    idle_reader, idle_writer = await site.connect()
    idle_writer.write(b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n")
    async with asyncio.timeout(LONG):
        await reader.readuntil(b'"a"')
        await idle_reader.readuntil(b'"ok"}')
        stopping = asyncio.ensure_future(site.serving.stop(LONG))
        assert b"" == await idle_reader.read()
        with pytest.raises(ConnectionRefusedError):
            await site.connect()
        go.set()
        rest = await reader.read()
        await stopping
    writer.close()
    idle_writer.close()

    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_stop_tells_those_it_cuts(start: Start) -> None:
    """After the grace a stream ends with an error event, and who waits for a whole answer gets a 503."""
    site = await start([Piece(1, "a", "")], 60.0)
    reader, writer = await site.connect()
    writer.write(request(STREAMED))
    waiting = asyncio.ensure_future(site.raw(request(STREAMED | {"stream": False})))
    async with asyncio.timeout(LONG):
        await reader.readuntil(b'"a"')
        await until(lambda: len(site.desk.answers) == 2)
        await site.serving.stop(0.01)
        rest = await reader.read()
        whole = await waiting
    writer.close()

    assert b'"code":"draining"' in rest and b"[DONE]" not in rest
    assert whole.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in whole
    assert all(answer.cancelled.is_set() for answer in site.desk.answers)


async def test_draining_refuses(start: Start) -> None:
    """A draining gateway answers 503, to be tried again, and closes the connection."""
    site = await start()
    site.desk.draining = True
    response = await site.chat()

    assert (503, "draining") == (response.status_code, error_of(response)["code"])
    assert ("close", "1", "true") == tuple(
        response.headers[name] for name in ("connection", "retry-after", "x-should-retry")
    )


async def test_a_sibling_takes_over_the_socket(start: Start) -> None:
    """Two gateways share a listening socket: once one stops, the other has every new connection."""
    with socket.create_server(("127.0.0.1", 0)) as shared:
        site, sibling = await start(fd=shared.fileno()), await start(fd=os.dup(shared.fileno()))
        await site.serving.stop(0)
        for _ in range(20):
            assert 200 == (await sibling.http.get("/livez", headers={"connection": "close"})).status_code
