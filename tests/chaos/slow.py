"""Clients that read one byte a second: they harm nobody, and are not fed for ever."""

import asyncio
import socket
import time
from urllib.parse import urlsplit

from tests.chaos.site import Shape
from tests.chaos.trial import Outcome, Scene, disturbed
from tests.kit.client import request

READERS = 6
GIVEN_UP_S = 3.0
SHAPE = Shape(env=(("MILLRACE_SLOW_READER", "32768"), ("MILLRACE_SLOW_READER_S", str(GIVEN_UP_S))))


async def readers(scene: Scene) -> Outcome:
    stop = asyncio.Event()
    began = time.monotonic()
    trickling = [asyncio.create_task(_trickle(scene.service.url, seed, stop)) for seed in range(READERS)]
    try:
        await asyncio.sleep(0.5)

        async def nothing(_: Scene) -> None:
            pass

        outcome = await disturbed(scene, nothing)
        # 1500 tokens are some half a megabyte, which takes this reader a week.
        limit = began + 1500 * 0.02 + 3 * GIVEN_UP_S
        while time.monotonic() < limit:
            gateway = await scene.busiest("gateway")
            if not gateway.load:
                break
            await asyncio.sleep(0.2)
        else:
            outcome.hangs.append(f"{gateway.load} slow readers are still being served")
        outcome.notes.append(f"slow readers gone after {time.monotonic() - began:.1f} s")
    finally:
        stop.set()
        await asyncio.gather(*trickling)
    return outcome


async def _trickle(url: str, seed: int, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    body = {"model": "sim", "messages": [{"role": "user", "content": "a long story"}], "seed": seed}
    body |= {"max_tokens": 1500, "ignore_eos": True, "stream": True, "return_token_ids": True}
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(sock, (parts.hostname, parts.port))
        await loop.sock_sendall(sock, request(url, body))
        while not stop.is_set():
            try:
                async with asyncio.timeout(1.0):
                    await stop.wait()
            except TimeoutError:
                pass
            try:
                if not sock.recv(1):
                    return
            except BlockingIOError:
                continue
            except OSError:
                return  # the server has hung up
