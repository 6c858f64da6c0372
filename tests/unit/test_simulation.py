"""The protocol's state machines in worlds that misbehave. `make simulate SEEDS=10000` runs many more."""

from dataclasses import replace

import pytest

from services.gateway.owner.ledger import Ledger
from tests.kit import sabotage as s
from tests.kit.promise import judged
from tests.kit.prophet import CredulousLoop
from tests.kit.weather import HAUNTED, ROLLING, ROUGH, SICK, STILL, STORM
from tests.kit.world import Breakage, World

BROKEN = {
    "no epochs at all": (HAUNTED, Breakage(ledger=s.EpochlessLedger, scribe=s.EpochlessScribe)),
    "no epochs at the owner": (HAUNTED, Breakage(ledger=s.EpochlessLedger)),
    "no epochs at a detokenizer": (HAUNTED, Breakage(scribe=s.EpochlessScribe)),
    "no indices": (ROUGH, Breakage(ledger=s.IndexlessLedger)),
    "no leases": (STILL, Breakage(ledger=s.LeaselessLedger)),
    "no watch": (ROUGH, Breakage(ledger=s.PatientLedger)),
    "nothing asked for again": (STORM, Breakage(ledger=s.ContentLedger)),
    "a lost job not made again": (STORM, Breakage(ledger=s.CarelessLedger)),
    "suspects beside others": (SICK, Breakage(ledger=s.CrowdedLedger)),
    "others beside a suspect": (SICK, Breakage(ledger=s.CarefreeLedger)),
    "every other crash forgiven": (SICK, Breakage(ledger=s.LenientLedger)),
    "a grant without the last token": (ROUGH, Breakage(ledger=s.ShortLedger)),
    "a leaving engine not heard": (ROLLING, Breakage(ledger=s.UngratefulLedger)),
    "an engine leaves without a word": (ROLLING, Breakage(roster=s.SilentRoster)),
    "nobody told to let go": (STILL, Breakage(ledger=s.ClingingLedger)),
    "a lost word not said again": (ROUGH, Breakage(ledger=s.IndifferentLedger)),
    "an engine does not let go": (ROUGH, Breakage(roster=s.HoldingRoster)),
    "a detokenizer does not let go": (ROUGH, Breakage(scribe=s.HoldingScribe)),
    "an answer begun anew": (HAUNTED, Breakage(roster=s.ForgetfulRoster)),
    "sent again a token late": (ROUGH, Breakage(roster=s.LateRoster)),
    "heard twice": (ROUGH, Breakage(scribe=s.RepeatingScribe)),
    "text not rebuilt": (ROUGH, Breakage(scribe=s.TruncatingScribe)),
    "the last holder's text": (HAUNTED, Breakage(scribe=s.StubbornScribe)),
    "sampling by global state": (STILL, Breakage(sampler=s.choose_by_global_state)),
    "guesses believed": (STILL, Breakage(loop=CredulousLoop)),
}
"""What each of the protocol's rules is for: without it, this weather has a world that breaks a promise."""


@pytest.mark.parametrize("fifty", range(2))
def test_no_world_loses_or_changes_a_stream(fifty: int) -> None:
    """Whatever is dropped, doubled, delayed, paused or killed, every promise is kept."""
    seeds = range(fifty * 50, fifty * 50 + 50)
    bad = {seed: wrong for seed in seeds if (wrong := judged(World(seed)))}

    assert {} == bad


def test_no_world_loses_or_changes_a_vector() -> None:
    """The same, where each answer is a vector, which its engine tells without a detokenizer."""
    bad = {seed: wrong for seed in range(100) if (wrong := judged(World(seed, vectors=True)))}

    assert {} == bad


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_noticed(name: str) -> None:
    """Worlds that are clean with all the rules, and not many of them, are not when one is taken out."""
    weather, breakage = BROKEN[name]

    assert any(judged(World(seed, breakage, weather)) for seed in range(50))


def test_a_seed_replays_exactly() -> None:
    """A failure can be looked at: the same seed gives the same history."""
    first, second = World(7), World(7)
    first.run()
    second.run()

    assert first.net.trace == second.net.trace


def test_streams_go_on_at_engines_of_their_kind() -> None:
    """There are two of each, and one leaves. A ledger that does not look for its like goes on elsewhere."""
    one_leaves = replace(ROLLING, faults=(1, 1), engines=(4,), answers=(250,), kinds=(2,))
    strange = []
    for ledger in (Ledger, s.KinlessLedger):
        worlds = [World(seed, Breakage(ledger=ledger), one_leaves) for seed in range(6)]
        for world in worlds:
            world.run()
        strange.append(sum(world.ledger.counts["resumed_on_another_kind"] for world in worlds))

    assert 0 == strange[0] < strange[1]
