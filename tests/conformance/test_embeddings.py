"""Embeddings through the clients' own libraries, of a model with random weights that the test writes."""

import asyncio
import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest
from openai import OpenAI
from tokenizers import Tokenizer

from tests.kit import reference
from tests.kit.checkpoint import random_tensors, write_embedder
from tests.kit.models import small
from tests.kit.service import ROOT, Service

DEMO = ROOT / "models" / "demo"
LENGTH = 256
CONFIG = small("Qwen3", vocab_size=4096, max_position_embeddings=2 * LENGTH, tie_word_embeddings=True)
SIZE = CONFIG["hidden_size"]
TEXTS = ["A mill stands by the river.", "Le moulin est au bord de l'eau.", "x", "A mill stands by the river."]
MANY = [f"{n} " + "The stream turns the wheel. " * 12 for n in range(300)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen3-Embedding is: its tokenizer ends every text with a token, whose state is the vector. And it
    takes shorter texts than the model could."""
    folder = write_embedder(tmp_path_factory.mktemp("hub") / "embedder", CONFIG)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LENGTH}))
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    end = json.loads((DEMO / "tokenizer_config.json").read_text())["eos_token"]
    id = Tokenizer.from_file(str(DEMO / "tokenizer.json")).token_to_id(end)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
        "pair": [],
        "special_tokens": {end: {"id": end, "ids": [id], "tokens": [end]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def service(hub: Path) -> Iterator[Service]:
    env = {"MILLRACE_MODEL": str(hub), "XDG_CACHE_HOME": str(hub.parent / "cache")}
    made = asyncio.run(Service.start(env=env, engines=2))
    yield made
    asyncio.run(made.stop())


@pytest.fixture
def ollamas(service: Service) -> Iterator[ollama.Client]:
    with ollama.Client(host=service.url) as made:
        yield made


def ids(hub: Path, text: str) -> list[int]:
    found: list[int] = Tokenizer.from_file(str(hub / "tokenizer.json")).encode(text).ids
    return found


def post(service: Service, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
    return httpx.post(service.url + path, json={"model": "embedder"} | body, timeout=60)


def test_what_a_vector_is(hub: Path, client: OpenAI) -> None:
    """In the order of the texts, of the length one, near to the reference's, and the tokens are counted."""
    made = client.embeddings.create(model="embedder", input=TEXTS)
    found = np.array([each.embedding for each in made.data])
    tokens = [ids(hub, text) for text in TEXTS]
    states = [reference.states(CONFIG, random_tensors(CONFIG), text, length=LENGTH)[-1] for text in tokens]
    right = np.array([state / np.linalg.norm(state) for state in states])

    assert [0, 1, 2, 3] == [each.index for each in made.data]
    assert float((found * right).sum(axis=1).min()) > 0.99
    assert float(np.abs(np.linalg.norm(found, axis=1) - 1).max()) < 1e-6
    assert np.array_equal(found[0], found[3]) and not np.allclose(found[0], found[1], atol=0.1)
    assert sum(map(len, tokens)) == made.usage.prompt_tokens == made.usage.total_tokens
    assert "embedder" == made.model


def test_forms_of_input_and_output(hub: Path, service: Service) -> None:
    """A text, texts, tokens and lists of tokens are one vector, as numbers and as base64."""
    text = TEXTS[0]
    inputs: list[Any] = [text, [text], ids(hub, text), [ids(hub, text)]]
    packed = {post(service, input=i, encoding_format="base64").json()["data"][0]["embedding"] for i in inputs}
    numbers = post(service, input=text, user="me").json()["data"][0]["embedding"]

    assert 1 == len(packed)
    assert numbers == np.frombuffer(base64.b64decode(packed.pop()), "<f4").tolist()


def test_dimensions(client: OpenAI, ollamas: ollama.Client) -> None:
    """A shorter vector is the beginning of the whole one, of the length one again."""
    whole, short = (
        np.array(client.embeddings.create(model="embedder", input="a mill", dimensions=n).data[0].embedding)
        for n in (SIZE, 16)
    )
    theirs = ollamas.embed("embedder", "a mill", dimensions=16).embeddings[0]

    assert (SIZE, 16) == (len(whole), len(short))
    assert np.allclose(short, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)
    assert np.array_equal(short.astype(np.float32), np.array(theirs, np.float32))


def test_ollama(hub: Path, service: Service, client: OpenAI, ollamas: ollama.Client) -> None:
    """Its own client gets the same vectors, on the newer route and the older one."""
    expected = [each.embedding for each in client.embeddings.create(model="embedder", input=TEXTS).data]
    made = ollamas.embed("embedder:latest", TEXTS, keep_alive="5m", options={"num_thread": 1})
    older = ollamas.embeddings("embedder", TEXTS[0])

    assert expected == [list(each) for each in made.embeddings]
    assert sum(len(ids(hub, text)) for text in TEXTS) == made.prompt_eval_count
    assert made.total_duration and "embedder:latest" == made.model
    assert expected[0] == list(older.embedding)
    assert [] == post(service, "/api/embed", input=[]).json()["embeddings"]
    assert [] == post(service, "/api/embeddings").json()["embedding"]


def test_what_is_too_long(hub: Path, service: Service, ollamas: ollama.Client) -> None:
    """Refused with both numbers; cut by Ollama's API, if it may be, to what fits with the last token."""
    long = "water " * 900
    count = len(ids(hub, long))
    refused = post(service, input=["a", long])
    fitting = [*ids(hub, long)[: LENGTH - 1], ids(hub, long)[-1]]
    with pytest.raises(ollama.ResponseError, match=f"{LENGTH}"):
        ollamas.embed("embedder", long, truncate=False)
    cut = ollamas.embed("embedder", long)
    whole = post(service, input=fitting)

    assert (400, "context_length_exceeded") == (refused.status_code, refused.json()["error"]["code"])
    assert "input[1]" == refused.json()["error"]["param"]
    assert f"{LENGTH}" in refused.json()["error"]["message"]
    assert count > LENGTH == cut.prompt_eval_count
    assert whole.json()["data"][0]["embedding"] == list(cut.embeddings[0])
    assert 400 == post(service, input=[1] * (LENGTH + 1)).status_code


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [1, [1]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [4096]}, "input"),
        ({"input": ["a"], "dimensions": SIZE + 1}, "dimensions"),
        ({"input": ["a"], "dimensions": 0}, "dimensions"),
        ({"input": ["a"], "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["a"], "sneaky": 1}, "sneaky"),
        ({}, "input"),
    ],
)
def test_what_is_wrong_is_named(service: Service, body: dict[str, Any], param: str) -> None:
    """Every bad request is 400, and says which parameter was bad."""
    response = post(service, **body)

    assert (400, param) == (response.status_code, response.json()["error"]["param"])


def test_no_text(service: Service, client: OpenAI, ollamas: ollama.Client) -> None:
    """What such a model is can be seen, and a text is refused on every surface."""
    turns: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.BadRequestError, match="makes vectors, and no text"):
        client.chat.completions.create(model="embedder", messages=turns)
    with pytest.raises(openai.BadRequestError, match="makes vectors, and no text"):
        client.completions.create(model="embedder", prompt="hi", stream=True)
    with pytest.raises(openai.BadRequestError, match="makes vectors, and no text"):
        client.responses.create(model="embedder", input="hi")
    with pytest.raises(ollama.ResponseError, match="makes vectors, and no text"):
        ollamas.chat("embedder", turns)
    claude = post(service, "/v1/messages", messages=turns, max_tokens=5)
    shown = ollamas.show("embedder")
    (tag,) = httpx.get(f"{service.url}/api/tags").json()["models"]

    assert 400 == claude.status_code and "makes vectors" in claude.json()["error"]["message"]
    assert ["embedding"] == shown.capabilities == tag["capabilities"]
    assert SIZE == (shown.modelinfo or {})["millrace.embedding_length"]
    assert "embed" == httpx.get(f"{service.url}/v1/models/embedder").json()["task"]


async def test_a_killed_engine_changes_nothing(service: Service) -> None:
    """The answer is the same, bit for bit, with an engine killed under it, and alone or in company."""
    body = {"model": "embedder", "input": MANY, "encoding_format": "base64"}
    async with httpx.AsyncClient(base_url=service.url) as client:
        calm = (await client.post("/v1/embeddings", json=body)).json()["data"]
        for _ in range(10):
            disturbed = asyncio.ensure_future(client.post("/v1/embeddings", json=body))
            struck = await service.strike() and not disturbed.done()

            assert calm == (await disturbed).json()["data"]
            await service.settled({"engine": 2})
            if struck:  # else all was computed before the load was told of
                break
        alone = await client.post("/v1/embeddings", json=body | {"input": MANY[7]})

    assert struck
    assert calm[7]["embedding"] == alone.json()["data"][0]["embedding"]
