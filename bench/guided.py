"""What it costs a step that its answers keep to a grammar: rows with and without, in turn."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench import table
from millrace import cache, models, settings
from millrace.grammar import Grammars
from millrace.messages import Form, Sampling, Voice
from services.engine.loop import StepLoop
from services.engine.model import prepare
from services.engine.model.session import OrtModel
from services.engine.steps.guide import Guide
from services.engine.steps.scheduler import Output, Scheduler
from services.engine.steps.sequence import Sequence
from services.tokenizer.constrain import grammar
from services.tokenizer.wish import Wish

BATCH = 16
TURN = 25
"""Steps in a row: what the other's turn left in the caches is not this one's for long."""

TOKENS = 450
"""Of an answer; then all begin anew."""

PROMPT = list(range(100, 132))

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "kind": {"enum": ["man", "woman", "child", "beast"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}},
        "from": {"type": "string", "pattern": "^[A-Z][a-z]{2,20}$"},
    },
    "required": ["name", "age", "kind", "tags", "from"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 1000}
"""It never comes to its end."""

WAYS = {"greedy": 0.0, "sampled": 0.8}


async def measure(seconds: float) -> None:
    folder = models.find("demo")
    root = cache.root()
    ready = prepare.converted(folder, root)
    graphs = prepare.prepared(ready, root)
    model = _Maker(ready, graphs)
    grammars = Grammars(folder.text)
    wish = Wish(Form("schema", json.dumps(SCHEMA), "p"), None, Voice(), False)
    text = grammar(wish, grammars.special)

    def guide() -> Guide:
        made = Guide()
        made.begin(grammars.matcher(text), grammars.tokens.vocab_size)
        return made

    rows: list[list[table.Cell]] = []
    for way, temperature in WAYS.items():
        free = _Rows(model(), temperature, None)
        held = _Rows(model(), temperature, guide)
        took: tuple[list[float], list[float]] = ([], [])
        more: list[float] = []
        spent = [0.0, 0.0]
        end = time.monotonic() + seconds / len(WAYS)
        while time.monotonic() < end:
            middle = [0.0, 0.0]
            for side, each in sorted(enumerate((free, held)), reverse=len(more) % 2 == 1):
                began = time.process_time()
                steps = each.turn()
                spent[side] += time.process_time() - began
                middle[side] = table.quantile(steps, 0.5)
                took[side].extend(steps)
            more.append(middle[1] / middle[0] - 1)
        line: list[table.Cell] = [way]
        for q in (0.1, 0.5):
            a, b = (table.quantile(side, q) * 1e3 for side in took)
            line += [a, b, f"{b / a - 1:+.1%}"]
        rows.append([*line, f"{table.quantile(more, 0.5):+.1%}", f"{spent[1] / spent[0] - 1:+.1%}"])
    table.show(
        f"Guided: a step of {BATCH} rows, milliseconds",
        ["", "free p10", "guided p10", "cost", "free p50", "guided p50", "cost", "by turn", "processor time"],
        rows,
        f"The demo model; turns of {TURN} steps with and without. By turn: the median of what each two turns "
        "in a row say by their middle steps. Where the machine has other work too, the quick steps tell more "
        "than the middle ones.",
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    folder: Path
    graphs: Path | None

    def __call__(self) -> OrtModel:
        given = settings.Engine()
        longest = len(PROMPT) + TOKENS + 1
        return OrtModel(
            self.folder, BATCH, given.chunk, max_len=longest, graphs=self.graphs, spin_us=given.spin_us
        )


class _Rows:
    def __init__(self, model: OrtModel, temperature: float, guide: Callable[[], Guide] | None):
        self._temperature = temperature
        self._guide = guide
        self._scheduler = Scheduler(BATCH, settings.Engine().chunk)
        self._out: list[Output] = []
        self._loop = StepLoop(self._scheduler, model, self._out.extend, lambda error: None)
        self._left = 0

    def turn(self) -> list[float]:
        """How long each step took."""
        if self._left < TURN:
            self._begin()
        self._left -= TURN
        ends = [time.perf_counter()]
        for _ in range(TURN):
            self._loop.step()
            ends.append(time.perf_counter())
        assert len(self._out) == BATCH * TURN and not any(output.finish for output in self._out)
        self._out.clear()
        return [after - before for before, after in pairwise(ends)]

    def _begin(self) -> None:
        for sequence in list(self._scheduler.running):
            self._scheduler.drop(sequence.request)
        for n in range(BATCH):
            sampling = Sampling(n, self._temperature)
            sequence = Sequence(f"r{n}", len(PROMPT), list(PROMPT), sampling, 1 << 30, epoch=1)
            sequence.guide = self._guide() if self._guide else None
            self._scheduler.add(sequence)
        while min((s.answered for s in self._scheduler.running), default=0) < 1:
            self._loop.step()
        self._left = TOKENS - max(s.answered for s in self._scheduler.running)
        self._out.clear()
