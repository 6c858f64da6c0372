"""Orders to a running service, as the one who gives them sees it."""

import threading
import time
from pathlib import Path

import msgspec
import pytest

from millrace.up import control
from millrace.up.control import ControlError, Done, Order, Ps, Restart, Said, Scale

ORDERS: list[Order] = [Ps(), Scale("engine", 2), Restart()]


@pytest.mark.parametrize("what", ORDERS, ids=lambda what: type(what).__name__)
def test_who_does_not_take_an_order_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Order
) -> None:
    """A supervisor that is stopped or hangs keeps nobody waiting without a word."""
    monkeypatch.setattr(control, "ANSWER_S", 0.05)
    with control._bind(tmp_path) as sock:
        sock.listen()
        with pytest.raises(ControlError, match="does not answer"):
            control.order(tmp_path, what, lambda text: None)


def test_an_order_that_was_taken_takes_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it tells of its progress, it is waited for."""
    monkeypatch.setattr(control, "ANSWER_S", 1.5)
    heard: list[str] = []
    with control._bind(tmp_path) as sock:
        sock.listen()

        def obey() -> None:
            talk = sock.accept()[0]
            with talk:
                talk.sendall(msgspec.json.encode(Said("draining")) + b"\n")
                time.sleep(control.ANSWER_S + 0.5)
                talk.sendall(msgspec.json.encode(Done("http://here", [])) + b"\n")

        obeying = threading.Thread(target=obey)
        obeying.start()
        done = control.order(tmp_path, Restart(), heard.append)
        obeying.join()

    assert (["draining"], "http://here") == (heard, done.url)
