"""The real model: ONNX Runtime sessions over one memory of keys and values.

A step is one of a few graphs, by what it has: decoding rows, a chunk, or both. Each writes keys and values
in place: the same memory is bound as past and as present. ONNX Runtime takes a batch as consecutive slots,
so the rows are the first slots, which the scheduler sees to; a chunk may lie in any slot.

Prepared graphs (prepare.py) share their weights. Where they cannot be prepared, each session has its own
packed copy, so there are two only, and a chunk without rows gets a row of no consequence in a spare slot.
"""

import dataclasses
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.convert import card
from millrace.convert.fast import FORMS, SCALES
from millrace.convert.network import Form
from millrace.convert.runtime import ort, said
from millrace.machine import Machine
from services.engine.choice.pool import Pool
from services.engine.choice.sample import Candidates
from services.engine.model.captured import Shapes
from services.engine.model.device import Bound, Device, Gpu, Processor, Slots, bound, in_order
from services.engine.model.far import FarSlots
from services.engine.model.host import HostShelf
from services.engine.model.near import Cache
from services.engine.model.staging import Staging
from services.engine.steps.prefix import BLOCK, Keeper
from services.engine.steps.scheduler import GUESSES, Chunk, Copy, Fetch, Keep, Load, Shelve, Step
from services.engine.steps.sequence import Sequence

BINDINGS = 256
"""Kept by the shape of a step. Making one costs some 100 us, running one nothing."""

log = logging.getLogger("millrace.engine")

Array = npt.NDArray[Any]


class OrtModel:
    def __init__(
        self,
        folder: Path,
        slots: int,
        chunk: int,
        *,
        max_len: int = 0,
        threads: int = 0,
        graphs: Path | None = None,
        fast: Path | None = None,
        spin_us: int = 0,
        prefix_bytes: int = 0,
        host_bytes: int = 0,
        machine: str = "",
        device: Device | None = None,
        large_pages: bool = False,
    ):
        """`graphs`: where the same graphs lie prepared for this machine, and `fast`: those of fast mode.
        `spin_us`: how long a worker looks for more work before it sleeps. `prefix_bytes`: for the keys and
        values of prefixes; `host_bytes`: of this machine's memory, for what a GPU has no room for. `machine`:
        what it computes with, as far as it matters to the last bit. `large_pages`: for keys and values in
        this machine's memory."""
        self._device = device = device or Processor()
        self.card = card.load(folder)
        # With fp32 keys and values, those of a decoded token are not those of a prefilled one: an answer
        # would depend on what was asked before.
        self.exact = self.card.cache == "int8"
        self._pool = Pool(self.card.pooling) if self.card.pooling else None
        # What goes into a vector has to be computed for it, and is not kept with keys and values.
        self._whole = self._pool is not None and self._pool.whole
        shares = (self.exact or device.shares) and not self._whole
        self.places = prefix_bytes // (BLOCK * self.card.token_bytes) if shares else 0
        self.max_len = min(max_len or self.card.max_len, self.card.max_len)
        self.slots = slots
        # With more threads than heads, ONNX Runtime splits a lone row's attention and sums it in another
        # order than a batch's: its bits would depend on its company.
        threads = min(threads or cores(), self.card.heads)
        # "unfused" is the attention that millrace/convert/runtime.py asks for.
        known = f"{self.card.digest} {machine} unfused {'' if self.exact else threads}"
        known += " fast" if fast else ""
        self.kind = hashlib.sha256(known.encode()).hexdigest()[:16]

        def opened(form: Form, where: Path = graphs or folder) -> ort.InferenceSession:
            path = str(where / self.card.graphs[form.value])
            options = _options(threads, spin_us, prepared=graphs is not None)
            return device.session(path, options, steady=form is Form.ROWS)

        self._opened = opened
        self.sessions = {form: opened(form) for form in (Form if graphs else (Form.ROWS, Form.MIXED))}
        memory = self.card, slots + 1, self.max_len, self.places
        self._slots: Slots
        self.shelf: Keeper | None = None
        if isinstance(device, Gpu):
            self._slots = FarSlots(device, *memory, host_bytes)
            if host_bytes and self.places:
                self.shelf = HostShelf(host_bytes, self._slots.block)
        else:
            self._slots = Cache(*memory, large=large_pages)
        self._staging: Staging | None = None
        if fast and isinstance(self._slots, Cache):
            sessions = {form: opened(form, fast) for form in FORMS}
            self._staging = Staging(self.card, self._slots, np.load(fast / SCALES), chunk, sessions)
        self._shapes = Shapes(slots, self.max_len) if device.captures else None
        self.block = self._slots.block
        self._bindings: OrderedDict[tuple[Form | bool | int, ...], Any] = OrderedDict()
        most = slots + 1 + max(GUESSES, chunk)
        held = {"tokens": device.hold(np.int64, slots + 1 + chunk), "wanted": device.hold(np.int64, most)}
        self._ends = {"rows": device.hold(np.int32, slots), "chunk": device.hold(np.int32, 1)}
        self._inputs = [*held.values(), *self._ends.values()]
        self._held = held
        self._tokens, self._wanted = held["tokens"].array, held["wanted"].array
        self._before = {side: each.array for side, each in self._ends.items()}
        # Operators read these on the host, wherever they run.
        self._split = np.zeros(2, np.int64)
        self._longest = {"rows": np.zeros((), np.int32), "chunk": np.zeros((), np.int32)}
        self._found = (
            {"states": device.hold(np.float32, most, self.card.hidden)}
            if self._pool
            else {
                "logits": device.hold(np.float32, most, self.card.vocab),
                "best": device.hold(np.float32, most, self.card.candidates),
                "ids": device.hold(np.int64, most, self.card.candidates),
            }
        )
        self._last: Any = None
        self._asked = 0  # rows whose results the last step was asked for

    def run(self, step: Step) -> Candidates:
        self.copy(step.copies)
        for swap in step.swaps:
            self._slots.swap(swap)
        chunk = step.chunk
        count = self._take_rows(step.rows)
        wanted = [row.slot for row in step.rows]
        form, first, more, slot = Form.ROWS, 0, 0, 0
        staging: Staging | None = None
        if chunk:
            slot = chunk.sequence.slot
            assert slot >= count, f"slot {slot} is a row's"
            wanting = chunk.last or self._whole or step.heard
            form = Form.MIXED if count else Form.CHUNK if wanting else Form.FILL
            if self._staging and self._staging.takes(chunk):
                staging = self._staging
            elif form not in self.sessions:
                form, first, count = Form.MIXED, self.slots, 1
                self._tokens[0] = self._before["rows"][0] = 0
                self._longest["rows"][()] = 1
            computed = staging.begin(chunk) if staging else chunk
            more = computed.count
            self._take_chunk(computed, count)
            if self._whole:
                wanted += range(count, count + more)
            elif chunk.last or not (wanted or step.heard or form is Form.FILL):
                wanted += range(count + more - 1 - len(chunk.guesses), count + more)
            own = count + more - chunk.count
            wanted += range(own, own + len(step.heard))
        replay = None
        if form is Form.ROWS and self._shapes:
            count, replay = self._filled(count, step.others, self._shapes)
            wanted += range(len(wanted), count)
        self._split[:] = count, more
        self._wanted[: len(wanted)] = wanted
        self._asked = len(wanted)
        for each in self._inputs:
            each.send()
        binding = self._binding(form, (first, count), (slot, more), len(wanted), staging)
        try:
            (staging or self).sessions[form].run_with_iobinding(binding, replay)
        except Exception as error:  # ONNX Runtime has its own kinds
            if replay is None:
                raise
            self._unrecorded(error)
            return self.run(dataclasses.replace(step, swaps=(), copies=()))
        self._last = binding
        if staging:
            staging.end()
        if self._pool:
            return self._pool.take(step, self.states if self._whole else self.states[: len(step.samples)])
        found = len(step.samples) + len(step.guesses) + len(step.heard)
        ids, best = self._taken("ids", found).copy(), self._taken("best", found).copy()
        if not self._device.ties:
            ids, best = in_order(ids, best)
        return Candidates(ids, best, self.card.vocab, lambda: self._taken("logits", found))

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Of all that the last step was asked for: its samples first, in their order."""
        return self._taken("logits", self._asked)

    @property
    def states(self) -> npt.NDArray[np.float32]:
        """The same of a model that makes vectors."""
        return self._taken("states", self._asked)

    def _taken(self, name: str, count: int) -> Array:
        if not count:
            return self._found[name].array[:0]
        at = list(self._found).index(name)  # they are bound first, and in this order
        return self._found[name].received(lambda: self._last.get_outputs()[at], count)

    def copy(self, copies: Iterable[Copy]) -> None:
        going: list[Shelve] = []
        for copy in copies:
            if not isinstance(copy, Shelve):
                self._shelved(going)
            match copy:
                case Keep(slot, start, places):
                    self._slots.keep(slot, start, places)
                case Load(slot, start, places):
                    self._slots.load(slot, start, places)
                case Fetch(slot, start, contents):
                    self._slots.fetch(slot, start, contents)
                case Shelve():
                    going.append(copy)
        self._shelved(going)

    def _shelved(self, going: list[Shelve]) -> None:
        """Several at once: from a GPU each way costs more than what it brings."""
        if not going:
            return
        contents = self._slots.contents([each.place for each in going])
        for each, content in zip(going, contents, strict=True):
            assert self.shelf is not None
            self.shelf.put(each.name, content)
        going.clear()

    def _take_rows(self, rows: list[Sequence]) -> int:
        for row in rows:
            assert row.slot < len(rows), f"a row in slot {row.slot} of {len(rows)}"
            assert row.computed < self.max_len, "a sequence outgrew its slot"
            self._tokens[row.slot] = row.tokens[row.computed]
            self._before["rows"][row.slot] = row.computed
        if rows:
            self._longest["rows"][()] = self._before["rows"][: len(rows)].max() + 1
        return len(rows)

    def _filled(self, count: int, others: Iterable[Sequence], shapes: Shapes) -> tuple[int, ort.RunOptions]:
        """Rows of no consequence behind the rows, up to a batch that is recorded: what they write lies where
        nothing is yet, in whoever's slot it is."""
        before, batch = self._before["rows"], shapes.batch(count)
        self._tokens[count:batch] = before[count:batch] = 0
        for other in others:
            if other.slot < batch:
                assert other.computed < self.max_len, "a sequence outgrew its slot"
                before[other.slot] = other.computed
        reach = shapes.reach(int(before[:batch].max()) + 1)
        self._longest["rows"][()] = reach
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(shapes.name(batch, reach)))
        return batch, options

    def _unrecorded(self, error: Exception) -> None:
        """What a step writes, it writes again; so it is taken once more, and from now on as it comes."""
        self._device.captures, self._shapes = False, None
        self._bindings.clear()
        self.sessions[Form.ROWS] = self._opened(Form.ROWS)  # not on a device that failed for good
        log.warning("steps are not recorded as CUDA graphs any more: %s", said(error))

    def _take_chunk(self, chunk: Chunk, behind: int) -> None:
        end = chunk.start + chunk.count
        assert end <= self.max_len, "a sequence outgrew its slot"
        self._tokens[behind : behind + chunk.count] = chunk.tokens
        self._before["chunk"][0] = end - 1
        self._longest["chunk"][()] = end

    def _binding(
        self,
        form: Form,
        rows: tuple[int, int],
        chunk: tuple[int, int],
        wanted: int,
        staging: Staging | None,
    ) -> Any:
        """The memory of a step, by its graph, the rows' first slot and their number, the chunk's slot and
        its length, the logits wanted, and whether the chunk is computed fast."""
        key = (form, *rows, *chunk, wanted, staging is not None)
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        if len(self._bindings) == BINDINGS:
            self._bindings.popitem(last=False)
        binding = (staging or self).sessions[form].io_binding()

        def bind(into: Callable[..., None], name: str, memory: Bound) -> None:
            into(name, *memory)

        bind(binding.bind_input, "tokens", self._held["tokens"].bound(0, rows[1] + chunk[1]))
        if wanted:
            bind(binding.bind_input, "wanted", self._held["wanted"].bound(0, wanted))
            for name, held in self._found.items():
                bind(binding.bind_output, name, held.bound(0, wanted))
        if form is Form.MIXED:
            bind(binding.bind_input, "split", bound(self._split))
        for side, first, count in (("rows", *rows), ("chunk", chunk[0], 1)):
            if side in form.sides:
                bind(binding.bind_input, f"{side}.before", self._ends[side].bound(0, count))
                bind(binding.bind_input, f"{side}.longest", bound(self._longest[side]))
                for i in range(self.card.layers):
                    for at, kv in enumerate("kv"):
                        memory = staging if staging and side == "chunk" else self._slots
                        slots = memory.bound(i, at, first, count)
                        bind(binding.bind_input, f"{side}.{kv}.{i}", slots)
                        bind(binding.bind_output, f"{side}.{kv}.{i}.out", slots)
        if staging:
            for name, one in staging.inputs().items():
                bind(binding.bind_input, name, one)
            for name, one in staging.outputs(chunk[1]).items():
                bind(binding.bind_output, name, one)
        self._bindings[key] = binding
        return binding


def cores() -> int:
    return max(1, int(Machine().cpus()))


def _options(threads: int, spin_us: int, *, prepared: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if prepared:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A worker that spins from one operator to the next is not asleep when it is wanted; one that spins for
    # longer, or after a step, only takes the core from the other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
