"""The scan for known vulnerabilities, against an index of our own."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.contract import audit
from tests.contract.audit import Known, Skip

BAD: dict[str, Any] = {"id": "PYSEC-1", "fixed_in": ["2.1"], "withdrawn": None}
SAID: dict[str, Any] = {
    "/pypi/good/1.0/json": {"vulnerabilities": []},
    "/pypi/bad/2.0/json": {"vulnerabilities": [BAD, {**BAD, "id": "PYSEC-2", "withdrawn": "2026"}]},
    "/pypi/mute/1.0/json": {"info": {}},
}


def beside(port: int) -> str:
    """Where pip would look on a server of our own, which has the JSON API beside it."""
    return f"http://127.0.0.1:{port}" + "/simple"


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(SAID.get(self.path, {})).encode()
            self.send_response(200 if self.path in SAID else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield beside(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_known_and_stands_is_told(index: str) -> None:
    found = audit.audit(audit.api(index), [("good", "1.0"), ("bad", "2.0")])

    assert found == [Known("bad", "2.0", "PYSEC-1", "2.1")]


@pytest.mark.parametrize("name", ["mute", "unknown"])
def test_an_index_that_does_not_tell_is_no_good_news(index: str, name: str) -> None:
    with pytest.raises(Skip, match=f"does not tell of {name} 1.0"):
        audit.audit(audit.api(index), [("good", "1.0"), (name, "1.0")])


def test_nobody_there_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit, "index", lambda: beside(9))

    assert audit.main() == 0
    assert capsys.readouterr().out.startswith("audit skipped: the index does not tell of ")


def test_a_folder_is_no_index() -> None:
    with pytest.raises(Skip, match="not on a network"):
        audit.api("file:///wheels/simple")


def test_everything_that_is_locked_is_asked_for() -> None:
    pins = dict(audit.pinned())

    assert {"msgspec", "nats-py", "onnxruntime", "litestar"} <= set(pins)
    assert pins["msgspec"][0].isdigit()
