"""Tests run on the event loop that the processes run on."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import hypothesis
import uvloop
from httpx._config import DEFAULT_TIMEOUT_CONFIG as patience

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")
patience.connect = patience.read = patience.write = patience.pool = 60.0  # nor are five seconds an answer


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
