"""What fits is known before anything is loaded; what never can is refused with the numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace import capacity, cli, models, plan, settings
from millrace.capacity import CannotFit, Memory, Needs, fit
from millrace.convert import convert
from millrace.machine import Machine
from services.engine import opening
from services.engine.model.session import OrtModel
from tests.kit.checkpoint import write_checkpoint, write_embedder
from tests.kit.models import FAMILIES

GB = 1 << 30
BIG = Needs(weights=GB, read=GB, token=57_000, vocab=150_000, context=40_960)
SMALL = Needs(weights=GB // 8, read=GB // 8, token=9_000, vocab=150_000, context=8_192)
EIGHT = Memory(8 * GB, 7 * GB)


def test_without_a_wish_as_many_slots_as_fit() -> None:
    """At most sixteen; and prefixes get what is left of what they would like."""
    few = fit(BIG, EIGHT, prefixes=4 * GB)
    many = fit(BIG, EIGHT, context=1000, prefixes=GB)

    assert (1, 40_960) == (few.slots, few.context)
    assert few.most_slots == few.slots and 0 < few.prefixes < 4 * GB
    assert (capacity.SLOTS, GB) == (many.slots, many.prefixes)


@given(
    st.integers(1, 64),
    st.integers(1, 1 << 17),
    st.integers(1 << 28, 1 << 36),
    st.integers(0, 1 << 32),
    st.integers(1, 5),
    st.sampled_from([None, SMALL]),
    st.booleans(),
)
def test_what_is_said_to_fit_does(
    slots: int, context: int, total: int, prefixes: int, engines: int, draft: Needs | None, gpu: bool
) -> None:
    """And one slot or one token more than is offered instead does not."""
    memory = Memory(total, total, gpu)
    try:
        found = fit(
            BIG, memory, slots=slots, context=context, prefixes=prefixes, engines=engines, draft=draft
        )
    except CannotFit:
        found = capacity.Fit(BIG, memory, slots, min(context, BIG.context), 0, engines, draft)
        assert found.resident > total * capacity.USABLE
        if found.longest:
            assert fit(BIG, memory, slots=slots, context=found.longest, engines=engines, draft=draft)
    assert found.most_slots == 0 or fit(
        BIG, memory, slots=found.most_slots, context=context, engines=engines, draft=draft
    )
    with pytest.raises(CannotFit):
        fit(BIG, memory, slots=found.most_slots + 1, context=context, engines=engines, draft=draft)
    if found.slots <= found.most_slots:
        assert found.resident <= total * capacity.USABLE and found.prefixes <= prefixes


def test_of_a_gpu_counts_what_is_free() -> None:
    """All is taken at once there, and others may have some of it; but engines that share it start together,
    each with weights of its own. A processor's memory is taken as it is used, so what is available just now
    says little."""
    near, far = (Memory(64 * GB, 8 * GB, gpu=gpu) for gpu in (False, True))
    fits = [fit(BIG, memory, prefixes=32 * GB, engines=n) for memory in (near, far) for n in (1, 2)]

    assert [16, 1] == [each.slots for each in fits if each.engines == 1]
    assert (11, 11, GB // 2) == (fits[1].slots, fits[3].slots, fits[1].left - fits[3].left)
    assert fits[2].resident <= 8 * GB * capacity.USABLE
    with pytest.raises(CannotFit, match=r"The GPU has .* of which"):
        fit(BIG, Memory(64 * GB, GB, gpu=True))
    assert 16 == fit(BIG, Memory(64 * GB, 0, gpu=True)).slots  # not told


def test_a_draft_takes_its_part() -> None:
    """Its weights once, and a slot in each engine; the longest it has a context for."""
    without, beside = (
        fit(BIG, Memory(64 * GB, GB), slots=4, engines=2, draft=each) for each in (None, SMALL)
    )

    assert SMALL.weights + 2 * 2 * SMALL.slot(8_192) == beside.resident - without.resident
    assert beside.left < without.left and "a draft" in str(beside)


def test_fast_mode_takes_its_part() -> None:
    """The one prompt that is computed lies beside its slot, four times as wide."""
    memory = Memory(64 * GB, GB)
    plain, fast = (fit(replace(BIG, wide=wide), memory, slots=4, context=1000) for wide in (0, 4 * BIG.token))

    assert 4000 * BIG.token == fast.slots_bytes - plain.slots_bytes == fast.resident - plain.resident
    assert fast.longest <= plain.longest and fast.most_slots < plain.most_slots


def test_what_never_fits_is_refused_with_the_numbers() -> None:
    """What was asked for, what it takes, what there is, and what would fit."""
    with pytest.raises(CannotFit) as caught:
        fit(BIG, EIGHT, slots=16)
    text = str(caught.value)

    assert "16 slots of 40960 tokens take up to 39.7 GB (57.0 kB a token), weights 1.1 GB" in text
    assert "The machine has 8.6 GB" in text and "At most 1 slots of 40960 tokens fit, with 16 slots" in text
    assert "--slots" in text and "--max-len" in text


@pytest.mark.parametrize(("slots", "max_len"), [(10**6, 0), (10**6, 1024)])
def test_the_engine_refuses_to_start_so(tmp_path: Path, slots: int, max_len: int) -> None:
    """As a wrong setting, before it loads anything."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    with pytest.raises(settings.SettingError, match="1000000 slots of 1024 tokens take up to"):
        opening.fitted(models.find(str(hub)), settings.Engine(slots=slots, max_len=max_len))


def test_the_engine_takes_what_fits(tmp_path: Path) -> None:
    """Of a machine whose memory is small, here by its cgroup: fewer slots, and no room for prefixes."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    root = machine(tmp_path, limit=290 << 20)
    found = opening.fitted(models.find(str(hub)), settings.Engine(sysroot=str(root)))

    assert (capacity.SLOTS, 1) > (found.slots, found.prefix_cache_mb) > (0, -1)


def test_a_slot_is_as_long_as_a_text_may_be(tmp_path: Path) -> None:
    """Of a model that makes vectors, which takes shorter texts than it could."""
    hub = write_embedder(tmp_path / "hub", FAMILIES["qwen3"])
    whole = opening.fitted(models.find(str(hub)), settings.Engine())
    (hub / "sentence_bert_config.json").write_text('{"max_seq_length": 100}')
    cut = opening.fitted(models.find(str(hub)), settings.Engine())
    shorter = opening.fitted(models.find(str(hub)), settings.Engine(max_len=30))

    assert whole.max_len == models.find(str(hub)).max_len > 100
    assert (100, 30) == (cut.max_len, shorter.max_len)


def test_a_machine_that_tells_nothing_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To have memory enough; the log has a warning."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["llama2"])
    found = opening.fitted(models.find(str(hub)), settings.Engine(sysroot=str(tmp_path)))

    assert capacity.SLOTS == found.slots
    assert "what fits is not known" in caplog.text


@pytest.mark.parametrize("quant", ["int8", "int4", "fp32"])
def test_the_plan_knows_the_bytes_of_a_conversion(tmp_path: Path, quant: str) -> None:
    """Of keys and values exactly, of weights before converting about as after."""
    hub = write_checkpoint(tmp_path / "hub", FAMILIES["qwen3"])
    ours = convert(hub, tmp_path / "ours", quant, accept=True)  # type: ignore[arg-type]
    found = plan.needs(models.find(str(ours)))
    model = OrtModel(ours, 2, 4)

    assert found.token == model.card.token_bytes
    assert found.vocab == model.card.vocab and found.context == model.max_len
    assert 0 < found.read < found.weights
    if quant == "int8":
        before = plan.needs(models.find(str(hub)))
        assert before.token == found.token
        assert 0.6 < before.read / found.read < 1.1


def test_model_plan_prints_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a table, with its formula, and as JSON with the same numbers; what does not fit is an error."""
    monkeypatch.setattr(plan, "bandwidth", lambda available: 1e10)
    hub = str(write_checkpoint(tmp_path / "hub", FAMILIES["llama2"]))
    assert 0 == cli.main(["model", "plan", hub, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert 0 == cli.main(["model", "plan", hub])
    text = capsys.readouterr().out

    assert (16, 1024, 2 * 3 * 6 * 16) == (found["slots"], found["max_len"], found["token"])
    expected = 1 / ((found["read"] + 512 * found["token"]) / (0.66 * 1e10) + 3 * 60e-6)
    assert round(expected, 1) == found["tokens_per_second"]["512"]
    assert f"{expected:.0f} of one stream that holds 512 tokens" in text
    assert "/ (0.66 x bandwidth) + 3 layers x 60 us" in text and "16 slots of 1024 tokens" in text
    assert "slots of 1024 tokens\n" in text, "there are no longer ones to be told of"
    assert 1 == cli.main(["model", "plan", hub, "--slots", "100000000"])
    assert "At most" in capsys.readouterr().err


def test_model_plan_knows_fast_mode_and_a_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the engine's own sum, whose refusals it has, too."""
    monkeypatch.setattr(plan, "bandwidth", lambda available: 1e10)

    def planned(*more: str) -> dict[str, int]:
        assert 0 == cli.main(["model", "plan", "demo", "--engines", "2", "--json", *more])
        made: dict[str, int] = json.loads(capsys.readouterr().out)
        return made

    plain, fast, both = planned(), planned("--fast"), planned("--fast", "--draft", "demo")
    demo, memory = models.find("demo"), Machine().memory()
    given = settings.Engine(fast=True, draft="demo", engines=2, prefix_cache_mb=0)

    assert (0, 4 * plain["token"] * plain["max_len"]) == (plain["fast"], fast["fast"])
    assert 2 * fast["fast"] == fast["resident"] - plain["resident"]
    assert both["resident"] == fast["resident"] + both["draft"] > fast["resident"]
    assert both["resident"] == plan.fits(demo, given, memory, demo).resident
    assert 0 == cli.main(["model", "plan", "demo", "--fast", "--draft", "demo"])
    text = capsys.readouterr().out
    assert "in fp32" in text and "its slot in each engine" in text
    hub = str(write_checkpoint(tmp_path / "hub", FAMILIES["llama2"]))
    int4 = str(convert(Path(hub), tmp_path / "int4", "int4", accept=True))
    for more, said in ((("--fast",), "is int4"), (("--draft", "demo"), "no tokens to compare")):
        assert 2 == cli.main(["model", "plan", int4, *more])
        assert said in capsys.readouterr().err


def test_the_probe_reads_memory() -> None:
    """More than a disk gives, less than a cache."""
    assert 5e8 < plan.bandwidth(1 << 30) < 1e13


def machine(folder: Path, *, limit: int, used: int = 0, version: int = 2, cached: int = 0) -> Path:
    """Where a machine of 8 GB tells of itself, and of a cgroup within another."""
    root = folder / "machine"
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\nMemAvailable: {7 << 20} kB\n")
    if version == 2:
        (root / "proc/self/cgroup").write_text("0::/outer/inner\n")
        outer = root / "sys/fs/cgroup/outer"
        files = {"memory.max": limit, "memory.current": used, "cpu.max": "150000 100000"}
        files |= {
            "memory.stat": f"active_file {cached // 2}\ninactive_file {cached // 2}\nanon 5",
            "cpu.stat": "nr_periods 8\nnr_throttled 3",
            "pids.max": 40,
            "pids.current": 18,
        }
    else:
        (root / "proc/self/cgroup").write_text("4:memory:/outer/inner\n2:cpu,cpuacct:/outer/inner\n0::/\n")
        outer = root / "sys/fs/cgroup/memory/outer"
        files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used}
        files |= {"memory.stat": f"total_active_file {cached // 4}\ntotal_inactive_file {3 * cached // 4}"}
        cpu = root / "sys/fs/cgroup/cpu/outer/inner"
        cpu.mkdir(parents=True)
        (cpu / "cpu.cfs_quota_us").write_text("150000")
        (cpu / "cpu.cfs_period_us").write_text("100000")
        (cpu / "cpu.stat").write_text("nr_periods 8\nnr_throttled 3")
    (outer / "inner").mkdir(parents=True)
    (outer / "inner" / "memory.max").write_text("max")
    (outer / "inner" / "memory.limit_in_bytes").write_text(str((1 << 63) - 4096))
    for name, value in files.items():
        (outer / name).write_text(f"{value}\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_a_cgroup_is_the_machine(tmp_path: Path, version: int) -> None:
    """The tightest of those around it counts; what files' cache takes is still available."""
    found = Machine(str(machine(tmp_path, limit=2 * GB, used=GB, cached=GB // 2, version=version)))

    assert Memory(2 * GB, 3 * GB // 2) == found.memory()
    assert min(1.5, Machine().cpus()) == found.cpus()
    assert (8, 3) == (found.throttled().periods, found.throttled().stopped)


def test_without_a_limit_it_is_all_of_it(tmp_path: Path) -> None:
    """As most machines are; and this one can be looked at."""
    assert Memory(8 * GB, 7 * GB) == Machine(str(machine(tmp_path, limit=100 * GB))).memory()
    assert 22 == Machine(str(tmp_path / "machine")).tasks()
    here = Machine().memory()
    assert 0 < here.available <= here.total
