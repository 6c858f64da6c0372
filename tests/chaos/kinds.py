"""Engines that disagree: a cut-off one talks on, and is heard again when its wire is whole.

There is no single right answer then. Right is what some engine says after exactly the tokens before it,
token by token; a token from an engine that had gone another way is explained by none.
"""

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Any

from millrace import models
from millrace.messages import Sampling
from services.detokenizer.decode import TextDecoder, load_tokenizer
from services.engine.choice.sample import choose
from services.engine.model.sim import Costs, SimModel, Vocabulary
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence
from tests.chaos.site import SABOTAGE, Shape
from tests.chaos.trial import Outcome, Scene, ended
from tests.kit.client import Answer, ask

KINDS = 2
STREAMS = 8
TOKENS = 250
SHAPE = Shape(engines=0, wired_engines=KINDS, env=(("PYTHONPATH", str(SABOTAGE / "kinds")),))
CUT_S = (1.3, 2.0)
"""Long enough for the job to be given to the other kind; the streams still run when the wire is whole."""


@dataclass(frozen=True)
class Asked:
    """A prompt in ids, so that the model can be asked again here."""

    seed: int
    prompt: list[int]

    @property
    def body(self) -> dict[str, Any]:
        body = {
            "model": "sim",
            "prompt": self.prompt,
            "seed": self.seed,
            "max_tokens": TOKENS,
            "stream": True,
        }
        return body | {"return_token_ids": True, "stream_options": {"include_usage": True}}


@cache
def _vocabulary() -> Vocabulary:
    return Vocabulary.load(models.find("sim").text)


def unexplained(asked: Asked, answer: Answer) -> str:
    """Nothing, if the answer is one that these engines can give."""
    vocabulary = _vocabulary()
    kinds = [SimModel(1, vocabulary, costs=Costs(0, 0, 0), kind=kind) for kind in range(KINDS)]
    eos = frozenset([vocabulary.eos])
    sequence = Sequence(
        "r", len(asked.prompt), list(asked.prompt), Sampling(asked.seed), TOKENS, 0, eos, 1, 0
    )
    decoder = TextDecoder(load_tokenizer(models.find("sim").text), skip_special=True)
    text, finish = "", ""
    for index, token in enumerate(answer.token_ids):
        step = Step([], Chunk(sequence, sequence.computed, len(sequence.tokens) - sequence.computed))
        choices = {choose(model.run(step), [sequence])[0] for model in kinds}
        if token not in choices:
            return f"token {index} is {token}, which no engine says there, but {sorted(choices)}"
        sequence.computed = len(sequence.tokens)
        finish = sequence.append(token)
        text += decoder.step(token)
    if (text + decoder.finish(), finish) != (answer.text, answer.finish):
        return f"the text or the finish ({answer.finish!r}, not {finish!r}) is not that of its tokens"
    return ""


async def cut_off(scene: Scene) -> Outcome:
    asked = [
        Asked(scene.chance.getrandbits(40), [scene.chance.randrange(300, 2000) for _ in range(20 + 5 * i)])
        for i in range(STREAMS)
    ]
    answers = [Answer(0.0) for _ in asked]
    tasks = [
        asyncio.create_task(ask(scene.service.url, a.body, path="/v1/completions", answer=answer))
        for a, answer in zip(asked, answers, strict=True)
    ]
    victim = await scene.busy("engine", 2)
    await scene.cut(victim.pid, scene.chance.uniform(*CUT_S))
    await ended(tasks, answers)
    outcome = Outcome(trials=1)
    for index, (one, task, answer) in enumerate(zip(asked, tasks, answers, strict=True)):
        name = f"stream {index + 1}"
        if not task.done():
            task.cancel()
            outcome.hang(name, answer)
            continue
        outcome.streams += 1
        if answer.failure:
            outcome.failures.append(f"{name}: {answer.failure} after {len(answer.token_ids)} tokens")
        elif wrong := unexplained(one, answer):
            outcome.mismatches.append(f"{name}: {wrong}")
        if answer.gaps:
            outcome.stalls.append(max(answer.gaps))
            outcome.excused.append(0.0)
    return outcome
