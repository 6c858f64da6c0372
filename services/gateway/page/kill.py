"""`POST /ui/kill`: the page's button that ends an engine, for a service on somebody's own machine.

`millrace up` lets it be there on a loopback address without keys, and nowhere else. A page from elsewhere
cannot press it: it may not send the header, and a name that was made to lead here is not one of ours.
"""

import os
import re
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from millrace.errors import Code, Failure
from millrace.messages import Here
from millrace.subjects import Role
from services.gateway.desk import Desk
from services.gateway.http.counter import at, reply

OURS = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    async def pressed(scope: Scope, receive: Receive, send: Send) -> None:
        if not desk.may_kill:
            raise Failure(Code.NOT_FOUND, "There is no such route.")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        origin = headers.get(b"origin", b"http://" + host)
        if headers.get(b"x-millrace-page") != b"1" or not OURS.fullmatch(host) or origin != b"http://" + host:
            raise Failure(Code.INVALID_REQUEST, "Only the page of this service may do that.")
        await reply(send, 200, msgspec.json.encode({"id": desk.kill_engine()}))

    return [at("POST", "/ui/kill", pressed)]


def busiest(heres: Iterable[Here], held: Mapping[str, int]) -> str:
    """Ends the engine that holds most of our requests, if it was started by our own parent; its id."""
    engines = [here for here in heres if here.role == Role.ENGINE and _beside(here.pid)]
    if not engines:
        raise Failure(Code.UNAVAILABLE, "No engine runs here just now.", retry_after=1.0)
    here = max(engines, key=lambda here: held.get(here.id, 0))
    os.kill(here.pid, signal.SIGKILL)
    return here.id


def _beside(pid: int) -> bool:
    """A pid that somebody told is only a number: it has to be one of the processes started with us."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" and int(fields[1]) == os.getppid()
