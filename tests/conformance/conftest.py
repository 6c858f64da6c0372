"""What most of these clients talk with, and what they are held against."""

import asyncio
from collections.abc import Iterator

import pytest
from openai import OpenAI
from tokenizers import Tokenizer

from millrace import models
from tests.kit.oracle import Oracle
from tests.kit.service import Service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = asyncio.run(Service.start(env={"MILLRACE_MODEL": "demo"}))
    yield made
    asyncio.run(made.stop())


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(models.find("demo").text / "tokenizer.json"))


@pytest.fixture(scope="session")
def prompt() -> list[int]:
    """No text that means anything: after it the model is in doubt, and repeats itself."""
    return [700, 800, 900, 1168]
