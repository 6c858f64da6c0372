"""What a world must have kept to when it is over.

To each client: its stream is made of segments, one for each grant that came to anything. A grant begins at
exactly the tokens that the client has by then; every token that counts in its epoch is what an engine of that
kind says after exactly the tokens before, and has the odds and the text that belong to it. The last piece and
no other says that it is the end; what is billed is what was asked and said; and it ends once, in text or in a
failure that was deserved.

To everybody else: what the owner let go of is let go, nothing runs on for a client that has gone, who crashes
engines does not do so for long, and where nothing goes wrong nothing is done twice.
"""

from millrace import messages as m
from millrace.errors import Code
from services.detokenizer.scribe import Scribe
from services.engine.choice.odds import odds
from services.engine.choice.pool import Vectors
from services.engine.choice.sample import Candidates, choose
from services.engine.steps.scheduler import Chunk, Step
from services.engine.steps.sequence import Sequence
from services.gateway.desk import Piece
from tests.kit.tongue import VOCABULARY, Model, Speller, VectorModel, spelling
from tests.kit.weather import ROLLING, STILL
from tests.kit.wishes import Wish
from tests.kit.world import World

USUAL = {"ended", "refused_stale"}
"""What a ledger counts where nothing goes wrong; a cancelled request leaves frames under way."""

HANDED_ON = USUAL | {
    "revoked_yielded",
    "revoked_forgotten",
    "resumed",
    "resumed_on_another_kind",
    "kept_for_its_kind",
}
"""Where engines leave in order."""

CRASHES = 8
"""Five, as a ledger counts them; but some happen before it granted anything, or while its words are lost."""


def judged(world: World) -> list[str]:
    """Run it, and say what is wrong; a machine that breaks is."""
    try:
        world.run()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return verdict(world)


def verdict(world: World) -> list[str]:
    """What is wrong with how it ended; nothing, if all is well."""
    kept = [fault for wish in world.wishes if (fault := _kept(wish))]
    return [*kept, *_left(world), *_crashed(world), *_twice(world)]


def _kept(wish: Wish) -> str:
    name, entry = wish.prompt.request[-2:], wish.entry
    if entry is None or not entry.ended:
        return f"{name} hangs after {len(wish.got)} tokens"
    if wish.ends != 1:
        return f"{name} ends {wish.ends} times"
    if wrong := _misplaced(wish) or (_no_vector(wish) if entry.vector else _strange(wish)):
        return f"{name} differs: {wrong}"
    if wish.poison and not wish.cancelled:
        crashed = entry.failure is not None and entry.failure.code is Code.JOB_CRASHED
        return "" if crashed else f"{name} is poison, and ended {entry.failure!r}"
    if entry.failure is not None:
        return f"{name} failed: {entry.failure}"
    if not wish.cancelled and not (wish.got and wish.got[-1].finish):
        return f"{name} ends without a finish"
    return _billed(wish)


def _billed(wish: Wish) -> str:
    name, entry = wish.prompt.request[-2:], wish.entry
    assert entry is not None
    if entry.committed != [piece.token for piece in wish.got]:
        return f"{name} is billed for {len(entry.committed)} tokens, and got {len(wish.got)}"
    if wish.got and entry.prompt_tokens != len(wish.ids):
        return f"{name} is billed for a prompt of {entry.prompt_tokens} tokens, and asked {len(wish.ids)}"
    if not 0 <= entry.cached_tokens < len(wish.ids) + len(wish.got):
        return f"{name} had {entry.cached_tokens} cached tokens of {len(wish.ids)}"
    return ""


def _misplaced(wish: Wish) -> str:
    """Why it was not granted as it must be."""
    tokens = [piece.token for piece in wish.got]
    for grant in wish.grants:
        if grant.committed != tokens[: grant.had]:
            return f"epoch {grant.epoch} begins after {grant.committed}, not after {tokens[: grant.had]}"
    if len({grant.epoch for grant in wish.grants}) < len(wish.grants):
        return f"an epoch was granted twice: {[grant.epoch for grant in wish.grants]}"
    granted = {grant.epoch for grant in wish.grants}
    for index, epoch in enumerate(wish.epochs):
        if index and wish.got[index - 1].finish:
            return f"token {index} comes after the end"
        if epoch not in granted:
            return f"token {index} counts in epoch {epoch}, which nobody was granted"
    return ""


def _no_vector(wish: Wish) -> str:
    """Why it is not the vector of the text by the engine that was granted it."""
    if not wish.got:
        return ""
    (kind,) = (grant.kind for grant in wish.grants if grant.epoch == wish.epochs[0])
    text = Sequence(wish.prompt.request, len(wish.ids), wish.ids, wish.prompt.sampling, 1, epoch=1, slot=0)
    found = VectorModel(kind).run(Step([], Chunk(text, 0, len(wish.ids))))
    assert isinstance(found, Vectors)
    told = [Piece(m.VECTOR, "", "stop", None, vector=vector) for vector in found.rows]
    return "" if wish.got == told else f"it is {wish.got}, not {told}"


def _strange(wish: Wish) -> str:
    """Why its stream is none of those that the granted engines could have made together."""
    prompt, kinds = wish.prompt, {grant.epoch: grant.kind for grant in wish.grants}
    models: dict[int, tuple[Model, int]] = {}  # of each kind, and the tokens it has computed
    eos, most = frozenset([VOCABULARY.eos]), prompt.max_tokens or 0
    sequence = Sequence(prompt.request, len(wish.ids), list(wish.ids), prompt.sampling, most, 0, eos, 1, 0)
    sequence.logprobs = prompt.logprobs
    writer = Scribe("d", lambda keep: Speller())
    writer.opened(m.Opened(prompt.request, 1, "e", [], wish.stops), 0.0)
    for index, (epoch, piece) in enumerate(zip(wish.epochs, wish.got, strict=True)):
        kind = kinds[epoch]
        model, computed = models.get(kind) or (Model(kind), 0)
        candidates = model.run(Step([], Chunk(sequence, computed, len(sequence.tokens) - computed)))
        assert isinstance(candidates, Candidates)
        models[kind] = model, len(sequence.tokens)
        (token,) = choose(candidates, [sequence])
        if piece.token != token:
            return f"token {index} is {piece.token}, and who was granted epoch {epoch} says {token}"
        (told,) = odds(candidates, [sequence], [token]) or [None]
        if piece.odds != _spelled(token, told):
            return f"the odds of token {index} are {piece.odds}, not {told}"
        finish = sequence.append(token)
        *_, (_, delta) = writer.frame(m.Frame("e", [m.Run(prompt.request, 1, index, [token], finish)]), 0.0)
        assert isinstance(delta, m.Delta)
        said = delta.said[0]
        if (said.pieces[0], said.finish) != (piece.text, piece.finish):
            return f"piece {index} is {piece}, not {said}"
    return ""


def _spelled(token: int, told: m.Odds | None) -> m.SpelledOdds | None:
    if told is None:
        return None
    best = zip(told.best, told.logprobs, strict=True)
    return m.SpelledOdds(
        m.Likely(spelling(token), told.logprob), [m.Likely(spelling(id), value) for id, value in best]
    )


def _left(world: World) -> list[str]:
    """What is still there when everybody has gone."""
    faults = []
    if world.ledger.entries:
        faults.append(f"the ledger still holds {list(world.ledger.entries)}")
    if world.queue.stored:
        faults.append(f"the queue still holds {[s.job.request[-2:] for s in world.queue.stored.values()]}")
    for id, engine in world.engines.items():
        for request, hold in engine.holds.items():
            faults.append(f"{id} still has {request[-2:]} {hold.phase.value}")
    for id, writer in world.scribes.items():
        for request, transcript in writer.live.items():
            if transcript.epoch <= world.released[id, request]:
                faults.append(f"{id} keeps {request[-2:]}, which was released")
    return faults


def _crashed(world: World) -> list[str]:
    """Who crashed more engines than it may, or might have crashed one of which another is held guilty."""
    many = {request[-2:]: count for request, count in world.crashes.items() if count > CRASHES}
    return [*world.crowds, *(f"{name} crashed {count} engines" for name, count in many.items())]


def _twice(world: World) -> list[str]:
    """What was done without need, where one can tell."""
    if world.weather not in (STILL, ROLLING):
        return []
    faults = []
    if strange := set(world.ledger.counts) - (USUAL if world.weather is STILL else HANDED_ON):
        faults.append(f"{world.weather.name}, and yet {sorted(strange)}")
    if world.ledger.counts["revoked_forgotten"] > world.overtaken:
        faults.append(f"{world.weather.name}, and yet it had to be asked who was still there")
    if world.weather is STILL:
        faults += [
            f"{request[-2:]} was delivered {count} times, and nothing had happened"
            for request, count in world.queue.deliveries.items()
            if count > 1
        ]
        held = {id for id, node in {**world.engines, **world.scribes}.items() if _holds(node)}
        faults += [f"{id} keeps something, though every word arrived" for id in sorted(held)]
    return faults


def _holds(machine: object) -> bool:
    return bool(machine.live if isinstance(machine, Scribe) else getattr(machine, "holds", None))
