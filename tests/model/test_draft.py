"""Real models guess for a real one: answers are the same to the byte as without, whoever guesses, whatever
decides a token, and whoever dies."""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from millrace import models
from millrace.convert import convert
from millrace.grammar import Grammars
from millrace.messages import Form, Odds, Sampling, Voice
from services.engine.guesses.draft import Draft
from services.engine.loop import StepLoop
from services.engine.model import prepare
from services.engine.model.session import OrtModel
from services.engine.steps.guide import Guide
from services.engine.steps.prefix import Prefixes
from services.engine.steps.scheduler import Output, Scheduler
from services.engine.steps.sequence import Sequence
from services.tokenizer.constrain import grammar
from services.tokenizer.wish import Wish
from tests.kit.checkpoint import write_checkpoint
from tests.kit.client import Answer, ask
from tests.kit.service import Service

DEMO = models.find("demo")
PROMPTS = {
    "mills": "<|im_start|>user\nTell me about water mills.<|im_end|>\n<|im_start|>assistant\n",
    "count": "<|im_start|>user\nCount from 1 to 20.<|im_end|>\n<|im_start|>assistant\n",
    "sum": "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n",
}
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9},
    "wild": {"temperature": 1.5, "top_p": 0.95},
    "penalties": {"temperature": 0.7, "repetition": 1.2, "frequency": 0.3, "presence": 0.2},
    "bias": {"temperature": 0.8, "bias": {300: 4.0, 400: 4.0, 2: -100.0}, "top_k": 20},
    "grammar": {"temperature": 0.9},
}
Said = dict[str, list[tuple[int, str, Odds | None]]]


class Real:
    """The demo model, and two drafts: itself, and one of its shape that was never trained."""

    def __init__(self, root: Path):
        self.root = root
        random_model = root / "random"
        shutil.copytree(DEMO.folder, random_model)
        write_checkpoint(random_model, json.loads((DEMO.folder / "config.json").read_text()))
        self.folders = {
            "good": prepare.converted(DEMO, root / "millrace"),
            "useless": convert(random_model, root / "converted", accept=True),
        }
        self.models = {fast: self.open("good", 4, fast=fast, prefix_bytes=1 << 20) for fast in (False, True)}
        self.grammars = Grammars(DEMO.folder)

    def open(self, name: str, slots: int, *, fast: bool = False, **more: Any) -> OrtModel:
        folder, root = self.folders[name], self.root / "millrace"
        graphs = prepare.prepared(folder, root)
        quick = prepare.faster(folder, root, graphs) if fast else None
        return OrtModel(folder, slots, 64, max_len=1024, graphs=graphs, fast=quick, spin_us=20, **more)

    def sequence(self, name: str, committed: list[int]) -> Sequence:
        prompt, wish = name.split()
        tokens = self.grammars.tokens.tokenize_str(PROMPTS[prompt], parse_special=True)
        made = Sequence(name, len(tokens), [*tokens, *committed], Sampling(len(name), **WISHES[wish]), 90)
        made.epoch, made.stop_ids, made.logprobs = 1, frozenset([2]), 3
        if wish == "grammar":
            form = Form("regex", "^([a-f]{2,5}, ){30}end$", "p")
            text = grammar(Wish(form, None, Voice(), False), self.grammars.special)
            made.guide = Guide()
            made.guide.begin(self.grammars.matcher(text), self.grammars.tokens.vocab_size)
        return made


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    return Real(tmp_path_factory.mktemp("models"))


def alone(real: Real, sequence: Sequence, *, fast: bool = False) -> list[Output]:
    """Without any guesses."""
    outputs: list[Output] = []
    scheduler = Scheduler(4, 64, apart=fast)
    scheduler.add(sequence)
    loop = StepLoop(scheduler, real.models[fast], outputs.extend, lambda error: None)
    while loop.step():
        pass
    return outputs


@pytest.fixture(scope="module", params=[False, True], ids=["exact", "fast"])
def mode(real: Real, request: pytest.FixtureRequest) -> tuple[bool, Said]:
    """Whether prompts are computed fast, and what is said then without a draft."""
    names = [f"{prompt} {wish}" for prompt in PROMPTS for wish in WISHES]
    return request.param, {
        name: [(o.token, o.finish, o.odds) for o in alone(real, real.sequence(name, []), fast=request.param)]
        for name in names
    }


@pytest.mark.parametrize("which", ["good", "useless"])
@pytest.mark.parametrize("seed", range(2))
def test_a_draft_changes_nothing(real: Real, mode: tuple[bool, Said], which: str, seed: int) -> None:
    """No token, no odds and no end: while sequences join, are dropped, come again with what was committed,
    and leave; with prefixes kept and slots exchanged, and in fast mode."""
    rng, (fast, expected) = random.Random(seed), mode
    model = real.models[fast]
    draft = Draft(real.open(which, 1), model.card.vocab, 1024, 64, clock=lambda: 0.0)
    scheduler = Scheduler(4, rng.choice([5, 32, 64]), Prefixes(model.places), draft.drafter, apart=fast)
    outputs: list[Output] = []
    loop = StepLoop(scheduler, model, outputs.extend, lambda error: None)
    coming, live, told = list(expected), set[str](), dict[str, Any]()
    rng.shuffle(coming)
    while coming or live:
        if coming and (not live or rng.random() < 0.03):
            name = coming.pop()
            told[name] = expected[name][: rng.choice([0, 1, len(expected[name]) // 2])]
            scheduler.add(real.sequence(name, [token for token, *_ in told[name]]))
            live.add(name)
        if live and rng.random() < 0.005:
            name = rng.choice(sorted(live))
            scheduler.drop(name)
            live.discard(name)
            coming.insert(0, name)
        outputs.clear()
        loop.step()
        for output in outputs:
            assert output.index == len(told[output.request])
            told[output.request].append((output.token, output.finish, output.odds))
            if output.finish:
                live.discard(output.request)

    assert expected == told
    least = 0.6 if fast else 0.8  # the draft computes no prompt fast
    assert draft.share.value > least if which == "good" else draft.share.value < 0.5


async def test_a_killed_engine_changes_nothing(real: Real) -> None:
    """A lone stream, guessed for, goes on when the engine is there again, and is guessed for again; it says
    what is said without any guesses."""
    made = real.sequence("mills sampled", [])
    made.stop_ids, made.max_tokens = frozenset(), 800
    body = {
        "model": "demo",
        "prompt": made.tokens[:],
        "max_tokens": made.max_tokens,
        "temperature": made.sampling.temperature,
        "seed": made.sampling.seed,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    said = [output.token for output in alone(real, made)]
    env = {"MILLRACE_MODEL": "demo", "MILLRACE_DRAFT": "demo", "XDG_CACHE_HOME": str(real.root)}
    service = await Service.start(env=env, engines=1)
    try:
        killed: list[int] = []  # after so many tokens
        while len(killed) < 10 and min(killed, default=700) >= 700:  # then this machine stopped us too long
            answer = Answer(0.0)
            (engine,) = await service.rows("engine")
            alive = [engine.pid]

            def kill(answer: Answer = answer, alive: list[int] = alive) -> None:
                if len(answer.token_ids) > 60 and alive:
                    os.kill(alive.pop(), signal.SIGKILL)
                    killed.append(len(answer.token_ids))

            await ask(service.url, body, path="/v1/completions", answer=answer, news=kill)

            assert not answer.failure
            assert said == answer.token_ids
            await service.settled({"engine": 1})
        logs = "".join(path.read_text() for path in (service.folder / "log").glob("engine*"))

        assert min(killed) < 700
        assert len(killed) + 1 == logs.count("demo guesses for demo")
    finally:
        await service.stop()
