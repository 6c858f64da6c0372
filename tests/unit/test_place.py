"""Where a service listens, as its user is told."""

import errno
import socket
from typing import Any

import pytest

from millrace.up import place


def test_where_ipv6_is_off_its_name_for_everywhere_is_told_as_ipv4s(monkeypatch: pytest.MonkeyPatch) -> None:
    """`::` is listened on for both, and its own address nobody has; where there is none of it at all, that is
    said."""

    class Off(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "")
            super().bind(address)

    def none(family: int, *_: Any) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "none of its kind")

    monkeypatch.setattr(socket, "socket", Off)
    off = place.public_url("::", 8000)
    monkeypatch.setattr(socket, "socket", none)
    with pytest.raises(place.CannotStart, match="--host ::: none of its kind"):
        place.listen("::", 0)

    assert ["http://127.0.0.1:8000"] * 2 == [off, place.public_url("::", 8000)]
    assert "http://[::2]:8000" == place.public_url("::2", 8000)


def test_an_address_without_a_way_to_it_is_not_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the loopback interface is down, where the service would wait for its own parts for ever."""

    class Down(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.ENETUNREACH, "")

    monkeypatch.setattr(socket, "socket", Down)
    with pytest.raises(place.CannotStart, match="loopback"):
        place.listen("127.0.0.1", 0)
