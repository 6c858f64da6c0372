"""Tests run on the event loop that the processes run on."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvloop
from httpx._config import DEFAULT_TIMEOUT_CONFIG as patience

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")
patience.connect = patience.read = patience.write = patience.pool = 60.0  # nor are five seconds an answer


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What wants a GPU is run where it is asked for, as `make gpu-test` does."""
    asked = any("tests/gpu" in each for each in config.args)
    return True if collection_path == Path(__file__).with_name("gpu") and not asked else None


@pytest.fixture
def gpu() -> Callable[..., Any]:
    """Opens what stands for a GPU: ONNX Runtime's memory of the processor. In tests/gpu it is a GPU."""
    from services.engine.model.device import Gpu

    return partial(Gpu, 0, "cpu")
