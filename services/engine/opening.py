"""The model that an engine's settings ask for: where it runs, with what fits there, and what is beside it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from millrace import cache, capacity, cuda, models, possible, settings
from millrace import messages as m
from millrace.capacity import SLOTS
from millrace.columns import size
from millrace.machine import Machine
from services.engine.guesses import draft
from services.engine.guesses.lookup import Lookup
from services.engine.loop import Model
from services.engine.model import sim
from services.engine.model.shelf import FileShelf
from services.engine.steps.scheduler import Chunk, Drafter, Step
from services.engine.steps.sequence import Sequence

log = logging.getLogger("millrace.engine")


@dataclass(frozen=True, slots=True)
class Opened:
    model: Model
    given: settings.Engine  # with what fits, where nothing was asked for
    drafter: Callable[[], Drafter] | None  # what guesses for a lone sequence


async def opened(folder: models.Model, given: settings.Engine) -> Opened:
    """Refuses what this model, or this machine, cannot do."""
    possible.fast(folder, given)
    possible.large_pages(folder, given)
    beside = possible.draft(folder, given)
    if folder.simulated:
        if cuda.number(given.device) is not None:
            raise settings.SettingError(
                f"--device {given.device}: {folder.name} is simulated, nothing computes"
            )
        given = msgspec.structs.replace(given, slots=given.slots or SLOTS)
        model: Model = simulated(folder, given)
    else:
        number = cuda.number(given.device)
        devices = await asyncio.to_thread(cuda.available, given.device, given.sysroot)
        gpu = None if number is None else devices[number]
        given = await asyncio.to_thread(fitted, folder, given, gpu, beside)
        model = await asyncio.to_thread(real, folder, given, gpu)
    if given.prefix_disk_mb and model.places:
        model.shelf = shelf(model, given)
    drafter: Callable[[], Drafter] | None = Lookup if given.speculate and model.exact else None
    if beside:
        drafter = (await asyncio.to_thread(draft.opened, beside, folder, model, given)).drafter
    return Opened(model, given, drafter)


def fitted(
    folder: models.Model,
    given: settings.Engine,
    gpu: cuda.Device | None = None,
    beside: models.Model | None = None,
) -> settings.Engine:
    """With the slots, of such a length, and the room for prefixes that this machine, or this GPU, has memory
    for, with a draft beside the model."""
    from millrace import plan  # noqa: PLC0415 - the simulated engine starts without ONNX

    prefixes = given.prefix_cache_mb << 20
    try:
        if gpu and not gpu.total:
            raise OSError(f"{gpu.name} does not say what memory it has")
        memory = capacity.Memory(gpu.total, gpu.free, gpu=True) if gpu else Machine(given.sysroot).memory()
        fit = plan.fits(folder, given, memory, beside, "cuda" if gpu else "cpu")
    except ValueError as error:
        raise settings.SettingError(f"model: {error}") from None
    except OSError as error:
        log.warning("what fits is not known: %s", error)
        return msgspec.structs.replace(given, slots=given.slots or SLOTS)
    log.info("%s; a slot holds a whole context, so what is admitted can end", fit)
    if not given.slots and fit.slots < SLOTS:
        log.warning("memory for %d slots of %d tokens, not for %d", fit.slots, fit.context, SLOTS)
    if fit.prefixes < prefixes:
        log.warning("memory for prefixes of %s, not of %d MB", size(fit.prefixes), given.prefix_cache_mb)
    return msgspec.structs.replace(
        given, slots=fit.slots, max_len=fit.context, prefix_cache_mb=fit.prefixes >> 20
    )


def real(folder: models.Model, given: settings.Engine, gpu: cuda.Device | None = None) -> Model:
    from services.engine.model import guest, prepare, session  # noqa: PLC0415 - the simulated one starts without ONNX

    if gpu:
        return _real_on_gpu(folder, given, gpu)
    if folder.guest:
        return guest.opened(folder, given.slots, given.max_len, prepare.machine())
    root = cache.root()
    with settings.at_fault("model"):
        ready = prepare.converted(folder, root)
    graphs = prepare.prepared(ready, root)
    with settings.at_fault("--fast"):
        fast = prepare.faster(ready, root, graphs) if given.fast else None
    prepare.tidied(root)
    model = session.OrtModel(
        ready,
        given.slots,
        given.chunk,
        max_len=given.max_len,
        graphs=graphs,
        fast=fast,
        spin_us=given.spin_us,
        prefix_bytes=given.prefix_cache_mb << 20,
        machine=prepare.machine(),
        large_pages=given.large_pages,
    )
    if not model.exact:
        log.warning("%s keeps keys and values in fp32: prefixes are not shared", folder.name)
    return model


def _real_on_gpu(folder: models.Model, given: settings.Engine, gpu: cuda.Device) -> Model:
    from millrace.convert import card  # noqa: PLC0415
    from millrace.convert.runtime import NoCuda  # noqa: PLC0415
    from services.engine.model import prepare, session  # noqa: PLC0415
    from services.engine.model.device import Gpu  # noqa: PLC0415

    if folder.guest:
        raise settings.SettingError(f"--device {given.device}: models that others exported run on cpu alone")
    root, number = cache.root(), cuda.number(given.device)
    assert number is not None
    with settings.at_fault("model"):
        ready = prepare.converted(folder, root, "cuda")
    if card.load(ready).cache == "bf16" and 0 < gpu.capability < cuda.BFLOAT16:
        raise settings.SettingError(
            f"--device {given.device}: {gpu.name} is of compute capability {gpu.capability}, and bfloat16 "
            f"needs {cuda.BFLOAT16}: convert {folder.name} with --quant fp16"
        )
    prepare.tidied(root)
    try:
        model = session.OrtModel(
            ready,
            given.slots,
            given.chunk,
            max_len=given.max_len,
            prefix_bytes=given.prefix_cache_mb << 20,
            host_bytes=0 if given.prefix_disk_mb else host_bytes(given),
            machine=f"{prepare.machine()} {gpu.name}",
            device=Gpu(number, captures=given.cuda_graphs),
        )
    except NoCuda as error:
        raise settings.SettingError(f"--device {given.device}: {error}") from None
    log.info("%s runs on cuda:%d, %s", folder.name, number, gpu.name)
    return model


def host_bytes(given: settings.Engine) -> int:
    """Of this machine's memory, for what a GPU has no room for. All of it is taken at once, so no more than
    half of what is free: who takes more than there is ends without a word."""
    wanted = given.prefix_host_mb << 20
    try:
        most = Machine(given.sysroot).memory().available // 2
    except OSError as error:
        log.warning("what memory is free is not known: %s", error)
        return wanted
    if wanted > most:
        log.warning("memory for prefixes of %s, not of %d MB", size(most), given.prefix_host_mb)
    return min(wanted, most)


def shelf(model: Model, given: settings.Engine) -> FileShelf | None:
    if not given.prefix_dir:
        raise settings.SettingError("prefix_disk_mb: no prefix_dir says where")
    try:
        made = FileShelf(Path(given.prefix_dir), given.prefix_disk_mb << 20, model.kind, model.block)
    except OSError as error:
        log.warning("no prefixes are kept on disk: %s", error)
        return None
    log.info("%d blocks of prefixes found in %s", len(made), given.prefix_dir)
    return made


def simulated(folder: models.Model, given: settings.Engine) -> sim.SimModel:
    words = sim.Vocabulary.load(folder.text)
    costs = sim.Costs(given.sim_step_ms / 1e3, given.sim_row_ms / 1e3, given.sim_token_ms / 1e3)
    return sim.SimModel(
        given.slots,
        words,
        costs=costs,
        eos_chance=given.sim_eos,
        poison_seed=given.sim_poison_seed,
        places=(given.prefix_cache_mb << 20) // sim.BLOCK_BYTES,
    )


def warm_up(model: Model) -> None:
    """A real prompt chunk and a real token, so that 'ready' means that steps run."""
    sequence = Sequence("warm_up", 2, [1, 2], m.Sampling(0), 1, epoch=1, slot=0)
    model.run(Step([], Chunk(sequence, 0, 1)))
    sequence.computed = 1
    model.run(Step([sequence], None))
