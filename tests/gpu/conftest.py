"""A GPU in place of what stands for it elsewhere. Without one all of these are skipped, and say why."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from millrace import cuda
from services.engine.model.device import Gpu


@pytest.fixture(scope="session")
def there() -> str:
    """Why nothing can run on a GPU here; empty if it can."""
    problems = cuda.found().problems
    return "; ".join(map(str, problems)) or cuda.tried()


@pytest.fixture(autouse=True)
def needed(there: str) -> None:
    if there:
        pytest.skip(f"no GPU: {there}")


@pytest.fixture
def gpu() -> Callable[..., Any]:
    return partial(Gpu, 0)
