"""What a model needs, from its files and without loading it; and how fast this machine's memory is."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from millrace import models, pooling, settings
from millrace.capacity import Fit, Memory, Needs, fit, tokens_per_second

if TYPE_CHECKING:
    from millrace.convert.card import Device

WEIGHT_BYTES = {"int8": 1.0, "int4": 0.625, "fp32": 4.0, "fp16": 2.0}
"""Of a linear layer's weight; four bits come in blocks of 32 with a scale each."""

PACKED_COPIES = {"int8": 0, "int4": 2, "fp32": 2}
"""On the processor: only 8-bit weights are mapped as they are used, the others each of two sessions packs."""

WIDE = 4
"""Times keys and values in 8 bits: those of the prompt that fast mode computes."""

OWN = ("int8", "int4")
"""On a GPU two sessions share weights in 16 bits, and of those in fewer each makes its own."""

SPARE = {"cpu": 1, "cuda": 2}
"""Slots of the engine's own: where a step's row of no consequence lies, and on a GPU where one of two slots
waits while they change places."""

PROBE_BYTES = 1 << 30
"""More than any processor's cache: of 256 MB a large one kept so much that twice the speed was seen."""

PROBE_S = 1.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What `millrace model plan` prints."""

    model: str
    form: str
    weights: int  # bytes
    read: int  # bytes of weights, by one step
    token: int  # bytes
    layers: int
    context: int  # tokens, as the model has it
    memory: int
    available: int
    cpus: float
    slots: int
    max_len: int
    slots_bytes: int
    most_slots: int
    longest: int
    engines: int
    fast: int  # bytes of the prompt that fast mode computes, in each engine; they are among the slots'
    draft: int  # bytes of a model that guesses, in all engines
    resident: int
    bandwidth: int  # bytes a second
    tokens_per_second: dict[int, float]  # of one stream, by what it holds


def needs(model: models.Model, device: "Device" = "cpu") -> Needs:
    """ValueError if the model's files do not tell. `device`: what a folder that is not converted will be
    converted for. The context is that of the texts it is asked for, which may be shorter than it could be."""
    found = _needs(model, device)
    most = pooling.most(model.folder) if model.vectors else None
    return replace(found, context=min(found.context, most or found.context))


def _needs(model: models.Model, device: "Device") -> Needs:
    from millrace.convert import card, read_architecture, usual  # noqa: PLC0415 - ONNX, which takes a second
    from millrace.convert.linear import WHOLE  # noqa: PLC0415

    if model.guest:
        from millrace.guest import form  # noqa: PLC0415

        guest = form.load(model.folder)
        files = sum(
            path.stat().st_size
            for path in model.folder.rglob("*")
            if path.suffix != ".json" and path.is_file()
        )
        # Grown keys and values are there twice, before a step and after it.
        token = guest.form.token_bytes * (1 if guest.in_place else 2)
        return Needs(2 * files, files, token, guest.vocab, model.max_len, guest.form.layers)
    if model.converted:
        of = card.load(model.folder)
        data = models.inside(model.folder, of.data).stat().st_size
        linear = max(0, data - 2 * of.vocab * of.hidden)  # one row of the words' table is read, not all
        held = data + (PACKED_COPIES[of.quant] * linear if of.device == "cpu" else of.own)
        spare = SPARE[of.device]
        return Needs(held, linear, of.token_bytes, of.vocab, of.max_len, of.layers, spare=spare)
    a = read_architecture(model.folder)
    quant = usual(model.folder, device)
    token_width, least = (2, WHOLE) if device == "cuda" else (1, 1)
    wide = sum(k * n for k, n in a.linears if k % least)  # weights that are kept in 16 bits
    narrow = int((a.linear - wide) * WEIGHT_BYTES[quant])
    token = 2 * len(a.layers) * a.kv_heads * a.head_dim * token_width
    words = 2 * a.vocab * a.hidden
    copies = PACKED_COPIES[quant] if device == "cpu" else int(quant in OWN)
    linear = narrow + 2 * wide
    held = words + linear + copies * narrow
    return Needs(held, linear, token, a.vocab, a.max_len, len(a.layers), spare=SPARE[device])


def fits(
    model: models.Model,
    given: settings.Engine,
    memory: Memory,
    draft: models.Model | None = None,
    device: "Device" = "cpu",
) -> Fit:
    """What an engine has memory for, as its settings have it; CannotFit if not for all that they ask for."""
    needed = needs(model, device)
    return fit(
        replace(needed, wide=WIDE * needed.token) if given.fast else needed,
        memory,
        slots=given.slots,
        context=given.max_len,
        prefixes=given.prefix_cache_mb << 20,
        engines=given.engines,
        draft=needs(draft) if draft else None,
    )


def made(model: models.Model, form: str, fitting: Fit, cpus: float, bandwidth: float) -> Plan:
    needed = fitting.needs
    marks = sorted({0, fitting.context // 2, fitting.context})
    return Plan(
        model=model.name,
        form=form,
        weights=needed.weights,
        read=needed.read,
        token=needed.token,
        layers=needed.layers,
        context=needed.context,
        memory=fitting.memory.total,
        available=fitting.memory.available,
        cpus=cpus,
        slots=fitting.slots,
        max_len=fitting.context,
        slots_bytes=fitting.slots_bytes,
        most_slots=fitting.most_slots,
        longest=fitting.longest,
        engines=fitting.engines,
        fast=fitting.wide,
        draft=fitting.weights - needed.weights + fitting.engines * fitting.drafts_bytes,
        resident=fitting.resident,
        bandwidth=int(bandwidth),
        tokens_per_second={mark: round(tokens_per_second(needed, bandwidth, mark), 1) for mark in marks},
    )


def bandwidth(available: int) -> float:
    """Bytes a second that all processors together read from memory: the best of some passes."""
    count = len(os.sched_getaffinity(0))
    read = min(PROBE_BYTES, available // 4)
    parts = np.array_split(np.ones(read // 4, np.float32), count)  # written, so that it is there
    best, end = float("inf"), time.perf_counter() + PROBE_S
    with ThreadPoolExecutor(count) as pool:
        while time.perf_counter() < end:
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - began)
    return read / best
