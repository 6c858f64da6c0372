"""The promise, on real processes: whatever is killed, paused or cut off, no client can tell.

One or two trials of the important faults; `make chaos` runs all of them, and often. The times are not
judged here, only the bytes.
"""

import pytest

from tests.chaos.__main__ import run
from tests.chaos.faults import FAR, FAULTS
from tests.chaos.site import SABOTAGE
from tests.chaos.trial import Outcome

QUICK = {"MILLRACE_SIM_STEP_MS": "6"}

TOLD = [
    "kill engine, 1 of 2",
    "kill tokenizer",
    "kill nats-server",
    "kill all but the gateway",
    "pause engine 2.5 s",
    "SIGTERM engine, 1 of 2",
    "kill detokenizer, 1 of 2",
    "pause detokenizer 2.5 s, 1 of 2",
    "cut off engine 2.5 s",
    "cut off engine, engines differ",
    "clients leave, 1 slot",
    "poison job among innocents",
    "full queue",
]

FAR_TOLD = ["leaf node: kill its engine", "leaf node: cut off 1.5 s", "joined cluster: cut off 1.5 s"]


def wrong(outcome: Outcome) -> list[str]:
    return [*outcome.mismatches, *outcome.hangs, *outcome.failures]


async def test_no_client_can_tell() -> None:
    """Every stream is what it is undisturbed, and none hangs."""
    outcomes = await run([fault for fault in FAULTS if fault.name in TOLD], trials=1, env=QUICK)

    assert {name: [] for name in TOLD} == {name: wrong(outcome) for name, outcome in outcomes.items()}


async def test_no_client_can_tell_that_an_engine_is_far() -> None:
    """Nor that it was killed there, or its link cut."""
    outcomes = await run([fault for fault in FAR if fault.name in FAR_TOLD], trials=1, env=QUICK)

    assert {name: [] for name in FAR_TOLD} == {name: wrong(outcome) for name, outcome in outcomes.items()}


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("index", "cut off detokenizer 1.2 s"),
        ("sampling", "kill engine, 1 of 2"),
        ("epoch", "cut off engine, engines differ"),
    ],
)
async def test_sabotage_is_noticed(rule: str, fault: str) -> None:
    """With a rule taken out of the real processes, the same faults change what clients get."""
    (chosen,) = (each for each in FAULTS if each.name == fault)
    for seed in range(10):  # by chance a fault may strike where the rule was not needed
        outcomes = await run([chosen], 1, seed, {"PYTHONPATH": str(SABOTAGE / rule)})
        if outcomes[fault].mismatches:
            break

    assert outcomes[fault].mismatches
