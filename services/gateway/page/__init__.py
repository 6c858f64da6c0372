"""The page at /ui: static files, with a policy that lets nothing in from elsewhere.

live     what it is told, as it happens
kill     its button
"""

import hashlib
from pathlib import Path

from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from services.gateway.http.counter import at, reply

FOLDER = Path(__file__).parent
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
GUARD = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),  # asked for again each time, and mostly answered with 304
]


FILES: dict[str, Path] = {f"/ui/{path.name}": path for path in FOLDER.iterdir() if path.suffix in TYPES}
FILES["/ui"] = FOLDER / "index.html"


def routes() -> list[HTTPRouteHandler]:
    return [at("GET", path, _file(file)) for path, file in FILES.items()]


def _file(path: Path) -> ASGIApp:
    body, kind = path.read_bytes(), TYPES[path.suffix]
    tag = b'"%b"' % hashlib.sha256(body).hexdigest()[:16].encode()
    headers = [(b"content-type", kind), (b"etag", tag), *GUARD]

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        known = dict(scope["headers"]).get(b"if-none-match")
        if known == tag:
            await reply(send, 304, b"", *headers)
        else:
            await reply(send, 200, body, *headers)

    return serve


def browser(scope: Scope) -> bool:
    """Whether a person's browser asks, and not a program that wants plain words."""
    return b"text/html" in dict(scope["headers"]).get(b"accept", b"")
