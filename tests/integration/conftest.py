"""What tests on real sockets share."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from millrace.settings import Gateway
from services.gateway.door.app import build, serve
from tests.kit.collector import Collector, collecting
from tests.kit.desk import ScriptedDesk
from tests.kit.face import Site, Start


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    sites: list[Site] = []

    async def begin(*script: Any, **settings: Any) -> Site:
        desk = ScriptedDesk(*script)
        gateway = Gateway(**({"port": 0} | settings))
        site = Site(desk, await serve(build(desk, gateway), gateway))
        sites.append(site)
        return site

    yield begin
    for site in sites:
        await site.close()
