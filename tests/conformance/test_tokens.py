"""`/tokenize` and `/detokenize` at a live service, held against the model's own tokenizer."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.kit.service import ROOT, Service

TEXT = "Hello, wörld!\n\n<|user|> 水車 🌊"
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    service = asyncio.run(Service.start(env={"MILLRACE_MODEL": "sim"}))
    with httpx.Client(base_url=service.url) as made:
        yield made
    asyncio.run(service.stop())


@pytest.fixture(scope="module")
def reference() -> Any:
    return Tokenizer.from_file(str(ROOT / "models" / "demo" / "tokenizer.json"))


def test_a_prompt_as_the_tokenizer_itself_has_it(client: httpx.Client, reference: Any) -> None:
    """Ids, their spellings, their number and the model's context, for text with all that is awkward."""
    made = client.post("/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    encoded = reference.encode(TEXT)

    assert {
        "count": len(encoded.ids),
        "max_model_len": 4096,
        "tokens": encoded.ids,
        "token_strs": encoded.tokens,
    } == made


def test_without_special_tokens(client: httpx.Client, reference: Any) -> None:
    """They are left out where the client says so."""
    body = {"model": "sim", "prompt": TEXT, "add_special_tokens": False}
    made = client.post("/tokenize", json=body).json()

    assert reference.encode(TEXT, add_special_tokens=False).ids == made["tokens"]
    assert made["token_strs"] is None


def test_there_and_back(client: httpx.Client) -> None:
    """What was tokenized is the same text again, its control tokens too."""
    tokens = client.post("/tokenize", json={"prompt": TEXT}).json()["tokens"]

    assert {"prompt": TEXT} == client.post("/detokenize", json={"tokens": tokens}).json()


def test_a_conversation_counts_as_its_answer_says(client: httpx.Client) -> None:
    """`/tokenize` counts what the usage of a chat with the same messages says, and is given back as text."""
    asked: Any = {"model": "sim", "messages": [{"role": "user", "content": "What is a mill race?"}]}
    made = client.post("/tokenize", json=asked).json()
    answer = client.post("/v1/chat/completions", json={**asked, "max_tokens": 1}).json()
    again = client.post("/detokenize", json={"tokens": made["tokens"]}).json()["prompt"]
    shorter = client.post("/tokenize", json={**asked, "add_generation_prompt": False}).json()

    assert answer["usage"]["prompt_tokens"] == made["count"] == len(made["tokens"])
    assert "What is a mill race?" in again
    assert made["tokens"][: shorter["count"]] == shorter["tokens"]
    assert shorter["count"] < made["count"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [4_000_000]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, path: str, body: Any, param: str) -> None:
    """A bad request is 400, with the parameter at fault."""
    response = client.post(path, json=body)

    assert 400 == response.status_code
    assert param == response.json()["error"]["param"]


def test_an_unknown_model_is_not_found(client: httpx.Client) -> None:
    """On both routes."""
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert 404 == client.post(path, json={"model": "nonesuch", **body}).status_code
