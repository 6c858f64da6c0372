"""The whole service as its users meet it: the OpenAI SDK in front, real processes behind."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from millrace import messages as m
from millrace import models
from millrace.bus import Bus, Inbox
from millrace.jetstream import JetStream
from millrace.subjects import DETOKENIZER, ENGINE, GATEWAY, JOBS, PRESENCE, TOKENIZER, Lane, Role
from millrace.telemetry import Context
from millrace.up import control
from tests.kit.client import ask
from tests.kit.service import ROOT, Service, environment

FAST = {"MILLRACE_SIM_STEP_MS": "1", "MILLRACE_SIM_ROW_MS": "0", "MILLRACE_SIM_TOKEN_MS": "0"}
HELLO: Any = [{"role": "user", "content": "Hello there, how are you?"}]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = asyncio.run(Service.start(env=FAST, engines=2))
    yield made
    asyncio.run(made.stop())


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture
async def aclient(service: Service) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_whole_and_streamed_answers_are_the_same(client: OpenAI) -> None:
    """One request, asked both ways, has the same text, finish and usage."""
    wanted: Any = {"model": "sim", "messages": HELLO, "seed": 3, "max_tokens": 60, "stop": ["e", "zz"]}
    whole = client.chat.completions.create(**wanted)
    chunks = list(
        client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]

    assert whole.choices[0].message.content == text
    assert [whole.choices[0].finish_reason] == reasons
    assert whole.usage == chunks[-1].usage


def test_usage_tells_what_did_not_have_to_be_computed(client: OpenAI) -> None:
    """An engine that has the prompt says the same as one that has not; each has it after the first time."""
    wanted: Any = {
        "model": "sim",
        "prompt": "And the mill went round and round, as mills had always done in that country.",
        "max_tokens": 20,
        "seed": 4,
    }
    texts, cached = [], []
    for _ in range(3):
        whole = client.completions.create(**wanted)
        *chunks, last = client.completions.create(
            **wanted, stream=True, stream_options={"include_usage": True}
        )
        texts += [whole.choices[0].text, "".join(chunk.choices[0].text for chunk in chunks)]
        for usage in (whole.usage, last.usage):
            assert usage is not None and usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens)

    assert texts == [texts[0]] * 6
    assert 0 == cached[0] and {0, 16} == set(cached)
    assert cached.count(0) <= 2, "there are two engines"


async def test_a_restarted_engine_finds_what_it_knew() -> None:
    """Prefixes that were put on disk when it stopped are not computed again, and the answer is the same."""
    made = await Service.start(env={"MILLRACE_PREFIX_DISK_MB": "64"}, engines=1)
    try:
        async with AsyncOpenAI(base_url=f"{made.url}/v1", api_key="unused") as client:

            async def ask() -> tuple[str, int]:
                prompt = "mill " * 100
                told = await client.completions.create(model="sim", prompt=prompt, max_tokens=9, seed=1)
                assert told.usage is not None and told.usage.prompt_tokens_details is not None
                return told.choices[0].text, told.usage.prompt_tokens_details.cached_tokens or 0

            text, cold = await ask()
            (before,) = await made.rows("engine")
            os.kill(before.pid, signal.SIGTERM)
            while [row.pid for row in await made.rows("engine") if row.state == "ready"] in (
                [],
                [before.pid],
            ):
                await asyncio.sleep(0.05)
            again, warm = await ask()
    finally:
        await made.stop()

    assert text == again
    assert 0 == cold < warm


async def test_many_at_once_are_each_as_alone(aclient: AsyncOpenAI) -> None:
    """A seed gives the same answer alone and among others."""

    async def ask(seed: int) -> str:
        made = await aclient.completions.create(
            model="sim", prompt="Once upon a time", seed=seed, max_tokens=40
        )
        return made.choices[0].text

    alone = [await ask(seed) for seed in range(24)]
    together = await asyncio.gather(*(ask(seed) for seed in range(24)))

    assert alone == together
    assert len(set(alone)) == 24


async def test_async_streams(aclient: AsyncOpenAI) -> None:
    """The asynchronous client streams to the end of what was asked for."""
    stream = await aclient.chat.completions.create(
        model="sim", messages=HELLO, seed=9, max_tokens=30, stream=True, extra_body={"ignore_eos": True}
    )
    reasons = [chunk.choices[0].finish_reason async for chunk in stream]

    assert "length" == reasons[-1]


def test_the_end_of_text_ends_an_answer(service: Service, client: OpenAI) -> None:
    """Without a limit an answer goes to its end-of-text token, and says stop."""
    made = client.chat.completions.create(model="sim", messages=HELLO, seed=5)

    assert "stop" == made.choices[0].finish_reason


def test_too_long_is_refused_with_both_numbers(client: OpenAI) -> None:
    """A request that cannot fit says how long it is and how long it may be."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="sim", prompt="word " * 20, max_tokens=5000)

    assert "context_length_exceeded" == refused.value.code
    assert "4096" in str(refused.value) and "5000" in str(refused.value)


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    """As the SDK knows it."""
    with pytest.raises(openai.NotFoundError, match="nonesuch"):
        client.chat.completions.create(model="nonesuch", messages=HELLO)


def test_the_models_are_listed(client: OpenAI) -> None:
    """What a client may ask for."""
    assert ["sim"] == [model.id for model in client.models.list()]


async def test_a_process_joins_with_the_address_alone(service: Service, aclient: AsyncOpenAI) -> None:
    """An engine started by hand, with the NATS address and the model's name, joins, and leaves in order."""
    url = (service.folder / "nats" / "engine.url").read_text().strip()
    env = environment({"MILLRACE_NATS": url, "MILLRACE_ID": "engine_by_hand", "MILLRACE_MODEL": "sim"})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "millrace", "engine", env=env, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        bus = await Bus.connect(
            (service.folder / "nats" / "operator.url").read_text().strip(), Role.OPERATOR, "t"
        )
        seen: asyncio.Event = asyncio.Event()

        async def here(message: Any, context: Context) -> None:
            if message.id == "engine_by_hand" and message.state == "ready":
                seen.set()

        await bus.listen(Inbox(PRESENCE.to("engine"), m.Here, here))
        await asyncio.wait_for(seen.wait(), 60)
        await bus.close()
        process.send_signal(signal.SIGTERM)

        assert 0 == await asyncio.wait_for(process.wait(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_what_nobody_waits_for_is_not_computed(service: Service) -> None:
    """An engine asks the owner which of what it holds is over; an owner that is gone waits for nothing."""

    async def joined(role: Role) -> Bus:
        return await Bus.connect((service.folder / "nats" / f"{role}.url").read_text().strip(), role, "t")

    async def busy(wanted: int) -> None:
        async with asyncio.timeout(60):
            while sum(row.load for row in await service.rows("engine")) != wanted:
                await asyncio.sleep(0.05)

    owner, tokenizer, engine = [await joined(role) for role in (Role.GATEWAY, Role.TOKENIZER, Role.ENGINE)]
    over: list[m.Ref] = []

    def heard(message: Any, context: Context) -> m.Message | None:
        if isinstance(message, m.Claim):
            JetStream(owner).settle(message.lease, "+TERM")
            return m.Granted(message.request, 3, [], "", 600_000)
        return m.Release(over) if isinstance(message, m.Holding) else None

    try:
        await owner.listen(Inbox(GATEWAY.to("lone"), m.ToGateway, heard))
        await owner.flush()
        for name in ("lone-1", "lone-2"):
            job = m.Job(name, 1, b"\1\0\0\0" * 4, m.Sampling(1), 100_000)
            await JetStream(tokenizer).store(Lane("sim").subject, job, name, 5.0, Context("", "", 0))
        await busy(2)
        over.append(m.Ref("lone-1", 3))
        await busy(1)
        await owner.close()
        await busy(0)

        (gateway,) = await service.rows("gateway")
        holding = m.Holding("e", [m.Ref(f"{gateway.id}-1", 7)])
        release = await engine.request(GATEWAY.to(gateway.id), holding, m.Release, 30.0)
    finally:
        for bus in (owner, tokenizer, engine):
            await bus.close()

    assert holding.refs == release.refs


async def test_a_cancelled_request_frees_its_slot() -> None:
    """With one slot and an endless answer in it, the next request is answered once the first client left."""
    service = await Service.start(env={**FAST, "MILLRACE_SLOTS": "1", "MILLRACE_SIM_STEP_MS": "5"})
    try:
        async with AsyncOpenAI(
            base_url=f"{service.url}/v1", api_key="x", max_retries=0, timeout=60
        ) as client:
            endless = await client.chat.completions.create(
                model="sim",
                messages=HELLO,
                seed=1,
                max_tokens=4000,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            await anext(aiter(endless))
            await endless.close()
            made = await client.chat.completions.create(model="sim", messages=HELLO, seed=2, max_tokens=3)

        assert made.usage is not None and made.usage.completion_tokens > 0
    finally:
        await service.stop()


async def test_deadlines_queue_limits_and_readiness() -> None:
    """Time that ran out is 504, a queue that is full is 429 with a time to wait, no engine is not ready."""
    env = {**FAST, "MILLRACE_SLOTS": "1", "MILLRACE_QUEUE": "3", "MILLRACE_SIM_STEP_MS": "200"}
    service = await Service.start(env={**env, "MILLRACE_DEADLINE_S": "5"})
    try:
        async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0) as client:

            async def ask() -> Any:
                wanted: Any = {"model": "sim", "messages": HELLO, "extra_body": {"ignore_eos": True}}
                return await client.chat.completions.create(**wanted, max_tokens=100)

            outcomes = await asyncio.gather(*(ask() for _ in range(6)), return_exceptions=True)
        refused = [o for o in outcomes if isinstance(o, openai.RateLimitError)]
        expired = [o for o in outcomes if isinstance(o, openai.InternalServerError) and o.status_code == 504]
        async with httpx.AsyncClient() as http:
            async with asyncio.timeout(60):
                while (await http.get(f"{service.url}/readyz")).status_code != 200:
                    await asyncio.sleep(0.1)
                scale = control.Scale("engine", 0)
                await asyncio.to_thread(control.order, service.folder, scale, lambda text: None)
                while (missing := await http.get(f"{service.url}/readyz")).status_code == 200:
                    await asyncio.sleep(0.1)  # its last sign of life is believed for two seconds

        assert (3, 3) == (len(refused), len(expired))
        assert all(int(o.response.headers["retry-after"]) >= 1 for o in refused)
        assert 503 == missing.status_code
        assert "engine" in missing.json()["error"]["message"]
    finally:
        await service.stop()


FUZZED = 10_000


async def test_nonsense_on_the_bus_harms_nothing(service: Service, aclient: AsyncOpenAI) -> None:
    """Ten thousand pieces of garbage on every subject: counted, no process ends, no job is stuck."""
    before = {row.pid for row in await service.ps()}
    rng = random.Random(1)
    ids = {row.role: row.id for row in await service.ps()}
    targets = {
        Role.GATEWAY: [TOKENIZER.to("sim"), ENGINE.to(ids["engine"]), DETOKENIZER.to(ids["detokenizer"])],
        Role.ENGINE: [GATEWAY.to(ids["gateway"]), "mr.orphan", PRESENCE.to("engine")],
        Role.TOKENIZER: [Lane("sim").subject],
    }
    valid = bytes.fromhex("95a566726d65a2653191 95a667772d31 01 00 91 05 a0".replace(" ", ""))
    for role, subjects in targets.items():
        bus = await Bus.connect((service.folder / "nats" / f"{role}.url").read_text().strip(), role, "fuzz")
        for subject in subjects:
            for i in range(FUZZED):
                junk = rng.randbytes(rng.randrange(0, 60)) if i % 2 else mutated(valid, rng)
                bus.send(subject, junk)
                if i % 500 == 499:
                    await bus.flush()  # no faster than it is read: this is not about dropped messages
        await bus.close()

    patient = aclient.with_options(max_retries=100)  # the garbage that was stored has to be thrown out first
    made = await patient.chat.completions.create(model="sim", messages=HELLO, seed=2, max_tokens=5)
    gateway = await Bus.connect(
        (service.folder / "nats" / "gateway.url").read_text().strip(), Role.GATEWAY, "fuzz"
    )
    async with asyncio.timeout(120):
        while (await JetStream(gateway)._api(f"STREAM.INFO.{JOBS.name}", {}))["state"]["messages"]:
            await asyncio.sleep(0.1)
    await gateway.close()

    assert made.choices[0].finish_reason
    assert before == {row.pid for row in await service.ps()}


def mutated(message: bytes, rng: random.Random) -> bytes:
    changed = bytearray(message)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


async def test_a_word_that_the_model_has_no_row_for_is_refused(tmp_path: Path) -> None:
    """Some tokenizers have more words than their model: such an id would end every engine it meets."""
    shutil.copytree(models.find("sim").folder, tmp_path / "sim")
    shutil.copytree(models.find("demo").folder, tmp_path / "demo")
    config = json.loads((tmp_path / "sim" / "config.json").read_text())
    (tmp_path / "sim" / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    service = await Service.start(env={"MILLRACE_MODEL": str(tmp_path / "sim")}, engines=1)
    try:
        said = await ask(
            service.url, {"model": "sim", "prompt": "water mills", "max_tokens": 1}, path="/v1/completions"
        )
        named = await ask(
            service.url, {"model": "sim", "prompt": [299], "max_tokens": 1}, path="/v1/completions"
        )
    finally:
        await service.stop()

    assert (said.status, said.error["param"]) == (400, "prompt")
    assert "outside the vocabulary of 300" in said.error["message"]
    assert named.status == 200
