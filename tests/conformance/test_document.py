"""`/openapi.json` is true: what is made by it is understood, or refused as what it is."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from litestar import Litestar

from millrace.settings import Gateway
from services.gateway.door.document import DELETES, GETS, POSTS, document
from services.gateway.door.routes import routes
from tests.kit.desk import ScriptedDesk
from tests.kit.service import Service

DOCUMENT: Any = schemathesis.openapi.from_dict(json.loads(document()))
OPERATIONS = [found.ok() for found in DOCUMENT.get_all_operations()]
EXAMPLES = 25
"""Of each route, good and bad; other tests send more."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    env = {"MILLRACE_MODEL": "sim", "MILLRACE_SIM_EOS": "0.5", "MILLRACE_SIM_STEP_MS": "0"}
    made = asyncio.run(Service.start(env=env))
    yield made
    asyncio.run(made.stop())


def test_it_is_served(service: Service) -> None:
    """As it is made."""
    assert document() == httpx.get(f"{service.url}/openapi.json").content


def test_every_route_of_a_surface_is_in_it() -> None:
    """Apart from those that people and machines ask about the service's state, older names of others, and one
    that only says why not."""
    served = {
        (method.lower(), re.sub(r":\w+}", "}", path))
        for route in Litestar(routes(ScriptedDesk(), Gateway()), openapi_config=None).routes
        for path in [route.path_format if hasattr(route, "path_format") else route.path]
        for method in route.methods
        if method not in ("HEAD", "OPTIONS")
    }
    told = {("post", path) for path in POSTS} | {("get", path) for path in GETS}
    told |= {("delete", path) for path in DELETES}
    untold = {"/", "/metrics", "/openapi.json", "/health"}

    rest = {path for _, path in served - told if not path.startswith("/ui")} - untold

    assert told - served == set()
    assert rest == {"/v1/responses/{id}/cancel", "/v1/responses/{id}/input_items"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: f"{op.method} {op.path}")
def test_nothing_that_it_allows_breaks_the_service(service: Service, operation: Any) -> None:
    """Every request made by it has an answer: what was asked, or what is wrong with it. Never a 5xx."""
    seen: set[int] = set()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(model := case.body.get("model"), str):
            case.body["model"] = "sim" if len(model) % 2 else model  # else there would hardly be a known one
        response = case.call(base_url=service.url, timeout=60)
        seen.add(response.status_code)
        assert response.status_code < 500, (response.status_code, response.text, case.body)

    send()

    assert seen
