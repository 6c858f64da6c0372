"""A real, headless Chromium, driven over its debugging pipe: no driver has to be installed for that."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)
WAIT_S = 60.0


class Broken(AssertionError):
    """The page threw, or what it was to show did not come."""


class Page:
    def __init__(self, browser: "Browser", session: str):
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []  # what the page wrote as errors, and what it was refused

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.call(method, params, self._session)

    async def open(self, url: str) -> None:
        await self._call("Page.navigate", url=url)
        await self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    async def js(self, expression: str) -> Any:
        """The value of an expression; a promise is waited for."""
        said = await self._call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in said:
            raise Broken(json.dumps(said["exceptionDetails"])[:2000])
        return said["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until it is true of the page."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not await self.js(f"!!({expression})"):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.js("document.body.innerText")
            raise Broken(f"never true: {expression}\n{text[:2000]}\n{self.complaints}") from None

    async def size(self, width: int, height: int, *, dark: bool = False) -> None:
        await self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self._call("Emulation.setEmulatedMedia", features=features)

    async def type(self, text: str) -> None:
        await self._call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, " ": 32}
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        if text:
            about["text"] = text
        await self._call("Input.dispatchKeyEvent", type="keyDown", **about)
        await self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def click(self, selector: str) -> None:
        place = await self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'nearest'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        await self._call("Input.dispatchMouseEvent", type="mousePressed", **at)
        await self._call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    async def hover(self, selector: str) -> None:
        place = await self.js(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        await self._call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    async def picture(self, path: Path) -> None:
        said = await self._call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(said["data"]))


class Browser:
    def __init__(self, send: asyncio.WriteTransport, reader: asyncio.StreamReader):
        self._send = send
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reading = asyncio.ensure_future(self._read(reader))

    async def call(self, method: str, params: dict[str, Any], session: str = "") -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send.write(json.dumps(message).encode() + b"\0")
        return await asyncio.wait_for(answer, WAIT_S)

    async def page(self) -> Page:
        target = await self.call("Target.createTarget", {"url": "about:blank"})
        attached = await self.call("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable", {}, attached["sessionId"])
        return page

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            message = json.loads((await reader.readuntil(b"\0"))[:-1])
            if "id" in message:
                answer = self._asked.pop(message["id"])
                if "error" in message:
                    answer.set_exception(Broken(str(message["error"])))
                elif not answer.done():
                    answer.set_result(message["result"])
            elif page := self._pages.get(message.get("sessionId", "")):
                params = message["params"]
                if message["method"] == "Runtime.exceptionThrown":
                    page.complaints.append(json.dumps(params["exceptionDetails"])[:500])
                elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                    page.complaints.append(params["entry"]["text"])

    def close(self) -> None:
        self._reading.cancel()
        self._send.close()


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM
    loop = asyncio.get_running_loop()
    # Chromium reads commands from its descriptor 3 and writes what it says to 4.
    commands_read, commands_write = os.pipe()
    said_read, said_write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="millrace-browser-", ignore_cleanup_errors=True) as profile:
        shell = f'exec "$0" "$@" 3<&{commands_read} 4>&{said_write}'
        process = await asyncio.create_subprocess_exec(
            *("/bin/bash", "-c", shell, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            pass_fds=(commands_read, said_write),
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        os.close(commands_read)
        os.close(said_write)
        reader = asyncio.StreamReader(limit=64 << 20)
        reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(said_read, "rb", 0)
        )
        sending, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(commands_write, "wb", 0))
        it = Browser(sending, reader)
        try:
            yield it
        finally:
            it.close()
            reading.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
