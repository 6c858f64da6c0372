"""The gateway's HTTP face on a real socket, with a desk that plays a script behind it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import openai

from services.gateway.door.app import Serving
from tests.kit.desk import ScriptedDesk

HELLO: Any = [{"role": "user", "content": "hello"}]
LONG = 60.0  # seconds after which a test hangs rather than waits


class Site:
    """A gateway's face with its desk and the ways to talk to it."""

    def __init__(self, desk: ScriptedDesk, serving: Serving):
        self.desk = desk
        self.serving = serving
        self.url = f"http://127.0.0.1:{serving.port}"
        self.sdk = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        self.http = httpx.AsyncClient(base_url=self.url)
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.serving.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await self.sdk.close()
        await self.http.aclose()
        await self.serving.stop(0)

    async def raw(self, data: bytes) -> bytes:
        """All that comes back until the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(LONG):
            answer = await reader.read()
        writer.close()
        return answer

    async def chat(self, **params: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json={"model": "sim", "messages": HELLO} | params)


Start = Callable[..., Any]


def request(
    body: dict[str, Any], path: str = "/v1/chat/completions", headers: str = "Connection: close"
) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


STREAMED = {"model": "sim", "messages": HELLO, "stream": True}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    return error
