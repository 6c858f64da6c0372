"""Pages of other origins, as a browser asks for them."""

import json

import pytest

from tests.kit.face import HELLO, Start

PAGE, OTHER = "https://app.example.org", "https://example.org.evil.example"
ASKS = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_a_page_of_a_named_origin_may_ask(start: Start) -> None:
    """What a browser asks first needs no key; the answer, a refusal too, may be read with its headers."""
    keys = json.dumps({"keys": {}})
    site = await start(origins=f"http://localhost:*, {PAGE}", keys=keys)
    before = await site.http.options("/v1/chat/completions", headers={"origin": PAGE, **ASKS})
    refused = await site.chat()
    asked = await site.http.post(
        "/v1/chat/completions", json={"model": "sim", "messages": HELLO}, headers={"origin": PAGE}
    )

    assert (204, PAGE) == (before.status_code, before.headers["access-control-allow-origin"])
    assert {"authorization", "content-type"} <= set(
        before.headers["access-control-allow-headers"].lower().split(", ")
    )
    assert (401, 401) == (refused.status_code, asked.status_code)
    assert "access-control-allow-origin" not in refused.headers
    assert PAGE == asked.headers["access-control-allow-origin"]
    assert "x-request-id" in asked.headers["access-control-expose-headers"]


async def test_a_stream_is_told_to_such_a_page(start: Start) -> None:
    site = await start(origins="*")
    asked = await site.http.post(
        "/v1/chat/completions",
        json={"model": "sim", "messages": HELLO, "stream": True},
        headers={"origin": OTHER},
    )

    assert (200, "*") == (asked.status_code, asked.headers["access-control-allow-origin"])
    assert asked.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("origins", ["", PAGE])
async def test_no_other_page_may(start: Start, origins: str) -> None:
    site = await start(origins=origins)
    before = await site.http.options("/v1/chat/completions", headers={"origin": OTHER, **ASKS})
    asked = await site.http.get("/v1/models", headers={"origin": OTHER})

    assert 200 == asked.status_code
    for answer in (before, asked):
        assert "access-control-allow-origin" not in answer.headers
