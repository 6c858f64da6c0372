"""A running service, asked over HTTP as its clients ask it, with nothing but the standard library."""

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from millrace.settings import SettingError

if TYPE_CHECKING:
    from http.client import HTTPResponse

KEY = "OPENAI_API_KEY"
SILENCE_S = 30.0
"""A stream says every five seconds that it is alive."""

Json = dict[str, Any]


class Refused(Exception):
    """The service did not do it, or was not there; the message says why, and what may help."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status  # 0: nobody answered


class Client:
    def __init__(self, url: str, key: str = ""):
        """`url` with or without the /v1 that OpenAI's clients want. Raises SettingError."""
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:
            raise SettingError(f"--url {url}: {error}") from None
        if parts.scheme not in ("http", "https") or not self._host:
            raise SettingError(f"--url {url}: not an address like http://127.0.0.1:8000")
        self._secure = parts.scheme == "https"
        self._path = parts.path
        self._key = key or os.environ.get(KEY, "")
        if not (self._key.isascii() and self._key.isprintable()):
            raise SettingError(f"{'--key' if key else KEY}: it holds what no key has: a line's end, say")

    def models(self) -> list[str]:
        return [model["id"] for model in self.ask("GET", "/v1/models")["data"]]

    def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """The whole answer."""
        with self._asked(method, path, body) as response:
            answer: Json = json.loads(response.read())
            return answer

    def events(self, method: str, path: str, body: Json | None = None) -> Generator[tuple[str, str]]:
        """Each event's name, where it has one, and its data. Closed early, it hangs up."""
        with self._asked(method, path, body) as response:
            name, data = "", ""
            for raw in response:
                line = raw.decode().rstrip("\r\n")
                field, _, value = line.partition(":")
                if field == "event":
                    name = value.strip()
                elif field == "data":
                    data += value.removeprefix(" ")
                elif not line and data:
                    yield name, data
                    name, data = "", ""

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, body: Json | None) -> "Iterator[HTTPResponse]":
        import http.client  # noqa: PLC0415 - not for the processes of a service, which start faster without it

        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        assert self._host
        connection = kind(self._host, self._port, timeout=SILENCE_S)
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._path + path, _bytes(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(response)
            yield response
        except TimeoutError:
            raise Refused(f"{self.url} has said nothing for {SILENCE_S:.0f} s") from None
        except ConnectionRefusedError:
            raise Refused(
                f"nobody answers at {self.url}: start a service with `millrace up`, or name one with --url"
            ) from None
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Refused(f"{self.url}: {said}") from None
        finally:
            connection.close()


def _bytes(body: Json | None) -> bytes | None:
    # What the terminal's encoding does not know came in as bytes, and goes out as the same.
    return None if body is None else json.dumps(body, ensure_ascii=False).encode(errors="surrogateescape")


MENDS = {
    401: f"give one with --key or {KEY}; `millrace key new` makes one",
    404: "`millrace ps` lists what is served here",
    503: "`millrace ps` shows which part is away",
}


def failure(error: Any, status: int = 0, wait: str = "") -> Refused:
    """From the `error` of an answer, or of a stream's last event."""
    said = str(error.get("message") if isinstance(error, dict) else error).rstrip(".")
    mend = f"try again in {wait} s" if wait and status != 503 else MENDS.get(status)
    return Refused(f"{said} ({mend})" if mend else said, status)


def _refused(response: "HTTPResponse") -> Refused:
    raw = response.read(1 << 16)
    wait = response.headers.get("retry-after", "")
    try:
        return failure(json.loads(raw)["error"], response.status, wait)
    except (ValueError, LookupError, TypeError):
        return failure(f"the answer was {response.status} {response.reason}", response.status, wait)
