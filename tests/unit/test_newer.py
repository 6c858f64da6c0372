"""A newer version's words are told apart from what is no word of ours at all."""

import msgspec
import pytest

from millrace import messages as m
from millrace import newer

encode = msgspec.msgpack.encode


def test_a_kind_that_this_version_does_not_know_has_its_name() -> None:
    """Whatever stands behind it."""
    assert ["tomorrow", "tomorrow"] == [
        newer.kind(encode(said)) for said in (["tomorrow"], ["tomorrow", 1, {"a": [2.5]}, b"x"])
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1 nonsense",
        b"\x91\xa2\xff\xfe",
        b"\x91" * 100_000,
        encode(["tomorrow"])[:-1],
        encode([]),
        encode([7, "tomorrow"]),
        encode({"tomorrow": 1}),
        encode("tomorrow"),
        encode(["Not a kind's name"]),
        encode(["ping"]),
        encode(["delta", "of", "something", "else"]),
        m.encode(m.Ping([])),
        m.encode(m.Holding("e", [])),
    ],
    ids=lambda payload: repr(payload[:20]),
)
def test_what_is_wrong_stays_wrong(payload: bytes) -> None:
    """Bytes that are nothing, and known kinds that are not as they have to be."""
    assert "" == newer.kind(payload)
