"""Ollama's API through its own client, sync and async, and the lines as they come."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest
from ollama import AsyncClient, Client

from tests.kit.service import Service
from train.facts import WEATHER_TOOL

ASKED: Any = [{"role": "user", "content": "What is the capital of France?"}]
ROME: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
STILL: Any = {"temperature": 0}
TIMES = {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(host=service.url) as made:
        yield made


def lines(service: Service, path: str, **body: Any) -> list[dict[str, Any]]:
    with httpx.stream("POST", service.url + path, json={"model": "demo"} | body, timeout=60) as response:
        raw = response.read()
    assert (200, "application/x-ndjson") == (response.status_code, response.headers["content-type"])
    return [json.loads(line) for line in raw.splitlines()]


def test_it_is_running(service: Service) -> None:
    """What clients and people look at first. Codex wants no older Ollama than 0.13.4."""
    got, head = httpx.get(service.url), httpx.head(service.url)

    assert ("Ollama is running", 200, 200) == (got.text, got.status_code, head.status_code)
    version = httpx.get(f"{service.url}/api/version").json()["version"]
    assert (0, 13, 4) <= tuple(map(int, version.split(".")))


def test_a_chat(client: Client) -> None:
    """The text, why it ended, what it cost and how long it took, in nanoseconds."""
    made = client.chat("demo", ASKED, options=STILL)

    assert "Paris" in (made.message.content or "")
    assert (True, "stop", "assistant") == (made.done, made.done_reason, made.message.role)
    assert made.eval_count and made.prompt_eval_count and made.created_at
    assert made.total_duration and made.eval_duration
    assert 0 < made.eval_duration <= made.total_duration < 60e9


def test_a_name_may_have_a_tag(client: Client) -> None:
    """Clients put `:latest` behind a name; the answer says the name that was asked for."""
    made = client.chat("demo:latest", ASKED, options={**STILL, "num_predict": 1})

    assert ("demo:latest", "length", 1) == (made.model, made.done_reason, made.eval_count)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "options": {
                "seed": 5,
                "temperature": 1.5,
                "top_k": 20,
                "top_p": 0.95,
                "min_p": 0.01,
                "num_predict": 40,
            }
        },
        {"options": {**STILL, "stop": ["Par"]}},
        {"options": {**STILL, "repeat_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5}},
        {"messages": ROME, "tools": [WEATHER_TOOL]},
    ],
)
def test_streamed_and_whole_are_the_same(service: Service, more: dict[str, Any]) -> None:
    """The lines add up to the answer in one piece."""
    body: Any = {"messages": ASKED, "options": STILL} | more
    if "seed" not in body["options"]:
        body["options"] = {**body["options"], "seed": 1}
    whole = httpx.post(f"{service.url}/api/chat", json={"model": "demo", "stream": False, **body}).json()
    *said, last = lines(service, "/api/chat", **body)
    content = "".join(line["message"]["content"] for line in said)
    calls = [call for line in said for call in line["message"].get("tool_calls", ())]
    made = whole.pop("message")

    def without_ids(found: list[dict[str, Any]]) -> list[Any]:
        return [call["function"] for call in found]

    assert (made["content"], without_ids(made.get("tool_calls", []))) == (content, without_ids(calls))
    assert {"role": "assistant", "content": ""} == last.pop("message")
    assert {k: v for k, v in whole.items() if k not in TIMES} == {
        k: v for k, v in last.items() if k not in TIMES
    }
    assert [False] * len(said) == [line["done"] for line in said]


async def test_the_asynchronous_client(service: Service) -> None:
    """It streams, and generates."""
    async with AsyncClient(host=service.url) as client:
        stream = await client.chat("demo", ASKED, stream=True, options=STILL)
        text = "".join([part.message.content or "" async for part in stream])
        made = await client.generate("demo", "What is the capital of France?", options=STILL)

    assert text == made.response
    assert "Paris" in text


def test_generate(client: Client) -> None:
    """A prompt goes through the model's template with the system text; raw goes as it is."""
    question = "What is the capital of France?"
    plain = client.generate("demo", question, options=STILL)
    system = client.generate("demo", question, system="You are a mill.", options=STILL)
    raw = client.generate("demo", question, raw=True, options={**STILL, "num_predict": 20})
    streamed = list(client.generate("demo", question, stream=True, options=STILL))

    assert plain.response == "".join(part.response or "" for part in streamed)
    assert streamed[-1].done_reason == "stop" and streamed[-1].eval_count == plain.eval_count
    assert (system.prompt_eval_count or 0) > (plain.prompt_eval_count or 0) > (raw.prompt_eval_count or 0)
    assert raw.eval_count and raw.eval_count <= 20


def test_a_raw_prompt_has_all_the_room(client: Client) -> None:
    """Without `num_predict` an answer is not cut off after a few tokens."""
    wild: Any = {"temperature": 2, "top_k": 0, "top_p": 1, "seed": 4}
    made = client.generate("demo", "Once upon a time", raw=True, options=wild)

    assert (made.eval_count or 0) > 16


def test_nothing_said_loads_the_model(client: Client) -> None:
    """Which is loaded already."""
    made = client.generate("demo")

    assert ("", True, "load") == (made.response, made.done, made.done_reason)
    assert "load" == client.chat("demo", []).done_reason


def test_a_tool_is_called_and_its_result_told(client: Client) -> None:
    """The arguments are an object; the client's own message goes back, and the result is told."""
    made = client.chat("demo", ROME, tools=[WEATHER_TOOL], options=STILL)
    (call,) = made.message.tool_calls or ()
    result = {"city": "Rome", "temperature": 21, "unit": "celsius", "sky": "sunny"}
    turns: Any = [
        *ROME,
        made.message,
        {"role": "tool", "tool_name": "get_weather", "content": json.dumps(result)},
    ]
    told = client.chat("demo", turns, tools=[WEATHER_TOOL], options=STILL)

    assert ("get_weather", {"city": "Rome"}, "stop") == (
        call.function.name,
        dict(call.function.arguments),
        made.done_reason,
    )
    assert "21" in (told.message.content or "")


def test_a_format(client: Client) -> None:
    """A schema holds; one that cannot be is the client's mistake, by its name."""
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    made = client.chat("demo", ASKED, format=schema, options=STILL)
    with pytest.raises(ollama.ResponseError, match="format") as refused:
        client.chat("demo", ASKED, format={"type": "nonesuch"})

    assert json.loads(made.message.content or "")["city"] in ("Oslo", "Rome")
    assert 400 == refused.value.status_code


def test_models(client: Client) -> None:
    """What is there, what it can, and that it is loaded."""
    (listed,) = client.list().models
    (running,) = client.ps().models
    shown = client.show("demo")

    assert ("demo:latest", "demo:latest", 4096) == (listed.model, running.model, running.context_length)
    assert ["completion", "tools"] == shown.capabilities
    assert 4096 == (shown.modelinfo or {})["millrace.context_length"]
    assert listed.digest == running.digest and listed.modified_at


def test_pull(service: Service, client: Client) -> None:
    """A served model is there, in whole lines; for another one the error says how it comes here."""
    raw = httpx.post(f"{service.url}/api/pull", json={"model": "demo"}).text
    parts: Any = list(client.pull("demo", stream=True))
    with pytest.raises(ollama.ResponseError, match="millrace model pull") as refused:
        client.pull("nonesuch")

    assert raw.endswith("}\n")
    assert ["success"] == [part.status for part in parts]
    assert 404 == refused.value.status_code


def test_no_embeddings(client: Client) -> None:
    """No model that is served here makes any."""
    with pytest.raises(ollama.ResponseError, match="no embeddings") as refused:
        client.embed("demo", "a")

    assert 400 == refused.value.status_code


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"temperature": 9}}, "options.temperature"),
        ({"options": {"num_ctx": 9999}}, "4096"),
        ({"options": {"num_predict": 9999}}, "4096"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"think": True}, "thinking"),
        ({"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"sneaky": 1}, "sneaky"),
        ({"messages": [], "keep_alive": 0}, "keep_alive"),
    ],
)
def test_what_is_wrong_is_named(service: Service, more: dict[str, Any], named: str) -> None:
    """A bad request is 400, as one line that says what was bad."""
    response = httpx.post(f"{service.url}/api/chat", json={"model": "demo", "messages": ASKED} | more)

    assert 400 == response.status_code
    assert ["error"] == list(response.json())
    assert named in response.json()["error"]


@pytest.mark.parametrize("name", ["suffix", "template", "context", "images"])
def test_what_generate_cannot_is_refused_by_name(service: Service, name: str) -> None:
    """Never left out in silence."""
    value: Any = "x" if name in ("suffix", "template") else [1]
    body = {"model": "demo", "prompt": "a", name: value}
    response = httpx.post(f"{service.url}/api/generate", json=body)

    assert 400 == response.status_code
    assert name in response.json()["error"]


def test_errors_have_this_form_everywhere(service: Service, client: Client) -> None:
    """An unknown model, no such route, a wrong method and a body that is no JSON."""
    with pytest.raises(ollama.ResponseError, match="nonesuch") as missing:
        client.chat("nonesuch", ASKED)
    answers = [
        httpx.post(f"{service.url}/api/nonesuch"),
        httpx.get(f"{service.url}/api/chat"),
        httpx.post(f"{service.url}/api/chat", content=b"{"),
    ]

    assert 404 == missing.value.status_code
    assert [404, 405, 400] == [answer.status_code for answer in answers]
    assert [["error"]] * 3 == [list(answer.json()) for answer in answers]
