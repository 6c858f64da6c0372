"""A stand-in of the Hugging Face Hub: the few endpoints that a client of it meets, on loopback.

GET /api/models/<org>/<repo>[/revision/<rev>]?blobs=True    what a revision has
GET /<org>/<repo>/resolve/<commit>/<name>                   small files; large ones are sent elsewhere
GET /large/<sha256>                                         the elsewhere: by another host name, as a CDN is
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

LARGE = ".safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Serves the files of a folder as one repository's. Its attributes may be changed while it runs."""

    def __init__(self, folder: Path, repo: str = "org/small"):
        self.repo = repo
        self.files = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        self.sent: dict[str, bytes] = {}  # other content than is told of, by name
        self.told: dict[str, dict[str, Any]] = {}  # what is said of a file, in place of the truth
        self.token = ""  # what a client has to have
        self.gated = False
        self.ranges = True
        self.stalls_at = 0  # bytes of a large file after which nothing more comes
        self.stalled = threading.Event()
        self.asked: list[tuple[str, str, str]] = []  # path, range, authorization
        hub = self

        class Handler(_Handler):
            of = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def siblings(self) -> list[dict[str, Any]]:
        said = []
        for name, content in self.files.items():
            one: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            if name.endswith(LARGE):
                one["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
            said.append(one | self.told.get(name, {}))
        return said

    def large_asked(self) -> list[str]:
        """The ranges that were asked for of large files."""
        return [range for path, range, _ in self.asked if path.startswith("/large/")]


class _Handler(BaseHTTPRequestHandler):
    of: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.of, unquote(urlsplit(self.path).path)
        hub.asked.append((path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
        if path.startswith("/large/"):
            by_hash = {sha256(content): name for name, content in hub.files.items()}
            name = by_hash[path.removeprefix("/large/")]
            return self._content(name, hub.sent.get(name, hub.files[name]))
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._error(401, "GatedRepo" if hub.gated else "RepoNotFound")
        if path.startswith(f"/api/models/{hub.repo}"):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in ("main", "v1", "refs/pr/1", COMMIT):
                return self._error(404, "RevisionNotFound")
            return self._json({"id": hub.repo, "sha": COMMIT, "siblings": hub.siblings()})
        start = f"/{hub.repo}/resolve/{COMMIT}/"
        name = path.removeprefix(start)
        if not path.startswith(start) or name not in hub.files:
            return self._error(404, "RepoNotFound")
        if name.endswith(LARGE):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{hub.port}/large/{sha256(hub.files[name])}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._content(name, hub.sent.get(name, hub.files[name]))

    def _content(self, name: str, content: bytes) -> None:
        start, asked = 0, self.headers.get("Range")
        if asked and self.of.ranges:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{sha256(content)}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stall = self.of.stalls_at
        if stall and name.endswith(LARGE):
            self.wfile.write(content[start:stall])
            self.wfile.flush()
            self.of.stalled.set()
            while self.of.stalls_at:  # until the test lets go; its client is dead by then
                threading.Event().wait(0.05)
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _json(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
