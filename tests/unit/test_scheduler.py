"""The scheduler: decode first, one bounded chunk beside it, no slot lost."""

from collections.abc import Iterable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millrace.messages import Sampling
from services.engine.steps.prefix import BLOCK, LEAST, Prefixes
from services.engine.steps.scheduler import Chunk, Copy, Fetch, Keep, Load, Scheduler, Shelve, Step
from services.engine.steps.sequence import Sequence


def sequence(
    name: str, prompt: int = 3, *, epoch: int = 1, max_tokens: int = 4, tenant: str = ""
) -> Sequence:
    tokens = list(range(1, prompt + 1))
    return Sequence(name, prompt, tokens, Sampling(1), max_tokens, epoch=epoch, tenant=tenant)


def test_a_long_prompt_is_computed_in_chunks_beside_decoding() -> None:
    """While one sequence prefills, the others go on with a token each step."""
    scheduler = Scheduler(slots=2, chunk=4)
    scheduler.add(first := sequence("a", prompt=1))
    scheduler.add(second := sequence("b", prompt=9))

    steps = []
    for _ in range(3):
        step = scheduler.schedule()
        assert step is not None
        steps.append(([s.request for s in step.rows], step.chunk and (step.chunk.start, step.chunk.count)))
        scheduler.postprocess(step, [7] * len(step.samples))

    assert [(["a"], (0, 4)), (["a"], (4, 4)), (["a", "b"], None)] == steps
    assert (3, 1) == (first.answered, second.answered)


def test_tenants_take_turns_with_their_prompts() -> None:
    """One prompt of another's waits for one chunk of a flood, not for all of it; and a flood goes on."""
    scheduler = Scheduler(slots=8, chunk=4)
    for name in ("f1", "f2", "f3"):
        scheduler.add(sequence(name, prompt=8, tenant="flood"))
    turns = []
    for number in range(10):
        if number == 1:
            scheduler.add(sequence("a1", prompt=8, tenant="a"))
            scheduler.add(sequence("b1", prompt=4, tenant="b"))
        step = scheduler.schedule()
        assert step is not None
        if step.chunk:
            turns.append(step.chunk.sequence.request)
        scheduler.postprocess(step, [7] * len(step.samples))

    assert ["f1", "a1", "b1", "f1", "a1", "f2", "f2", "f3", "f3"] == turns


def test_the_last_chunk_samples() -> None:
    """The step that completes a prompt decides its first token."""
    scheduler = Scheduler(slots=1, chunk=16)
    scheduler.add(only := sequence("a", prompt=9))
    step = scheduler.schedule()

    assert step is not None and step.samples == [only] and step.chunk == Chunk(only, 0, 9)


def test_no_answer_before_the_grant() -> None:
    """A sequence the owner has not granted computes its prompt up to the last token, and no further."""
    scheduler = Scheduler(slots=1, chunk=16)
    scheduler.add(sequence("a", prompt=5, epoch=0))
    step = scheduler.schedule()
    assert step is not None and step.chunk is not None
    scheduler.postprocess(step, [])

    assert 4 == step.chunk.count and not step.samples
    assert scheduler.schedule() is None


def test_a_granted_sequence_goes_on_after_what_was_committed() -> None:
    """The tokens an earlier holder had committed are computed like a prompt, and the index goes on."""
    scheduler = Scheduler(slots=1, chunk=16)
    scheduler.add(sequence("a", prompt=3, epoch=0))
    scheduler.grant("a", 4, [50, 51])
    step = scheduler.schedule()
    assert step is not None
    (output,) = scheduler.postprocess(step, [52])

    assert ("a", 4, 2, 52, "") == (output.request, output.epoch, output.index, output.token, output.finish)


def test_a_prompt_that_is_computed_apart_ends_with_a_chunk() -> None:
    """What was committed of its answer begins the next one; a lone last token of a prompt is no row."""
    scheduler = Scheduler(slots=2, chunk=16, apart=True)
    scheduler.add(sequence("a", prompt=5, epoch=0))
    scheduler.add(sequence("b", prompt=1))
    seen: list[Any] = []
    for granted in (False, True, True, True, True):
        if granted and len(seen) == 1:
            scheduler.grant("a", 2, [50, 51, 52])
        step = scheduler.schedule()
        assert step is not None
        chunk = step.chunk and (step.chunk.sequence.request, step.chunk.start, step.chunk.count)
        seen.append(([row.request for row in step.rows], chunk, [s.request for s in step.samples]))
        scheduler.postprocess(step, [9] * len(step.samples))

    assert [
        ([], ("a", 0, 4), []),
        ([], ("a", 4, 1), []),
        ([], ("a", 5, 3), ["a"]),
        ([], ("b", 0, 1), ["b"]),
        (["b"], None, ["b"]),
    ] == seen


class DictShelf:
    outlives = True

    def __init__(self) -> None:
        self.places = 100
        self.held: dict[bytes, list[int]] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self.held

    def take(self, name: bytes) -> list[int] | None:
        return self.held.get(name)

    def touch(self, name: bytes) -> None:
        pass


class Memory:
    """What a model's slots and pool would hold, token for token: a block with all that came before it."""

    def __init__(self, slots: int):
        self.slots: list[list[int]] = [[] for _ in range(slots)]
        self.pool: dict[int, list[int]] = {}
        self.shelf = DictShelf()
        self.fetched = 0

    def copy(self, copies: Iterable[Copy]) -> None:
        for copy in copies:
            match copy:
                case Keep(slot, start, places):
                    for i, place in enumerate(places):
                        self.pool[place] = self.slots[slot][: start + (i + 1) * BLOCK]
                case Load(slot, start, places):
                    self._take(slot, start, [self.pool[place] for place in places])
                case Fetch(slot, start, contents):
                    self._take(slot, start, contents)
                    self.fetched += len(contents)
                case Shelve(name, place):
                    self.shelf.held[name] = self.pool[place]

    def _take(self, slot: int, start: int, blocks: list[list[int]]) -> None:
        for i, block in enumerate(blocks):
            end = start + (i + 1) * BLOCK
            assert len(block) == end and self.slots[slot][: end - BLOCK] == block[:-BLOCK]
            self.slots[slot] = list(block)

    def run(self, step: Step) -> None:
        self.copy(step.copies)
        for swap in step.swaps:
            held = self.slots
            held[swap.first], held[swap.second] = (
                held[swap.second][: swap.second_tokens],
                held[swap.first][: swap.first_tokens],
            )
        for sequence in step.sequences:
            start, held = sequence.computed, self.slots
            tokens = [sequence.tokens[start]]
            if step.chunk and step.chunk.sequence is sequence:
                tokens = step.chunk.tokens
                assert len(tokens) == step.chunk.count
            held[sequence.slot] = held[sequence.slot][:start] + tokens


def drained(scheduler: Scheduler, memory: Memory) -> int:
    """Run until nothing is left to do: how many tokens had to be computed."""
    computed = 0
    while step := scheduler.schedule():
        memory.run(step)
        computed += len(step.rows) + (step.chunk.count if step.chunk else 0)
        scheduler.postprocess(step, [7] * len(step.samples))
    return computed


def of(tokens: list[int], name: str, *, tenant: str = "", max_tokens: int = 1, epoch: int = 1) -> Sequence:
    return Sequence(name, len(tokens), list(tokens), Sampling(1), max_tokens, epoch=epoch, tenant=tenant)


def test_the_next_turn_computes_what_is_new() -> None:
    """A prompt that repeats an earlier one and its answer is computed from the last whole block on."""
    scheduler, memory = Scheduler(2, 32, Prefixes(64)), Memory(2)
    scheduler.add(of(list(range(100, 150)), "first", max_tokens=20))
    cold = drained(scheduler, memory)
    turn = of([*range(100, 150), *[7] * 20, 1, 2, 3], "second")
    scheduler.add(turn)
    warm = drained(scheduler, memory)

    assert (69, 73 - 64, 64) == (cold, warm, turn.cached)


def test_of_siblings_the_first_computes_the_prompt() -> None:
    """Several at once with the same long prompt: it is computed once, and nobody waits for a turn in vain."""
    scheduler, memory = Scheduler(8, 32, Prefixes(64)), Memory(8)
    siblings = [of([*range(100, 196), i], f"{i}") for i in range(8)]
    for each in siblings:
        scheduler.add(each)

    assert 97 + 7 == drained(scheduler, memory)
    assert [0] + [96] * 7 == [each.cached for each in siblings]


def test_one_token_is_always_computed() -> None:
    """A prompt that is known to its last token still needs logits to answer from."""
    scheduler, memory = Scheduler(2, 64, Prefixes(64)), Memory(2)
    for name in ("first", "second"):
        scheduler.add(last := of(list(range(32)), name))
        computed = drained(scheduler, memory)

    assert (16, 16) == (computed, last.cached)


def test_a_resumed_sequence_takes_what_is_known_of_its_answer() -> None:
    """The committed tokens are no different from a prompt's; what is reported is of the prompt alone."""
    scheduler, memory = Scheduler(2, 64, Prefixes(64)), Memory(2)
    scheduler.add(of(list(range(20)), "first", max_tokens=40))
    drained(scheduler, memory)
    again = of(list(range(20)), "again", max_tokens=60, epoch=0)
    scheduler.add(again)
    before = drained(scheduler, memory)
    scheduler.grant("again", 2, [7] * 35)
    after = drained(scheduler, memory)

    assert (3, 55 - 48 + 60 - 35 - 1) == (before, after)
    assert 17 == again.cached  # a whole block, and one of the four tokens behind it


def test_what_has_no_place_any_more_comes_from_the_shelf() -> None:
    """It is not computed again; but a few blocks are not worth the way."""
    memory = Memory(2)
    scheduler = Scheduler(2, 64, Prefixes(LEAST, memory.shelf))
    for begin in (100, 200, 100):
        last = of(list(range(begin, begin + LEAST * BLOCK + 1)), f"{begin}", max_tokens=2)
        scheduler.add(last)
        computed = drained(scheduler, memory)
    few = of([*range(200, 200 + BLOCK * (LEAST - 1)), 1], "few")
    scheduler.add(few)
    drained(scheduler, memory)

    assert (2, LEAST, LEAST * BLOCK) == (computed, memory.fetched, last.cached)
    assert 0 == few.cached


def test_what_is_kept_is_put_away_at_the_end() -> None:
    """With what no step has copied yet."""
    memory = Memory(2)
    scheduler = Scheduler(2, 64, Prefixes(8, memory.shelf))
    scheduler.add(of(list(range(40)), "a"))
    drained(scheduler, memory)
    memory.copy(scheduler.put_away())

    assert [16, 32] == sorted(len(content) for content in memory.shelf.held.values())


def test_another_tenant_finds_nothing() -> None:
    """Neither the time a prompt takes nor its usage tells that somebody else has sent it before."""
    scheduler, memory = Scheduler(2, 64, Prefixes(64)), Memory(2)
    secret = list(range(500, 564))
    scheduler.add(of(secret, "hers", tenant="ada"))
    hers = drained(scheduler, memory)
    scheduler.add(his := of(secret, "his", tenant="bob"))
    scheduler.add(nobodys := of(secret, "nobody's"))
    others = drained(scheduler, memory)
    scheduler.add(again := of(secret, "again", tenant="ada"))
    drained(scheduler, memory)

    assert 2 * hers == others
    assert (0, 0, 48) == (his.cached, nobodys.cached, again.cached)


class Nines:
    """A drafter that is right but for its last word, in a world of nines."""

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        return [*[9] * (len(sequence.tokens) % 5), 8][:most]

    def judged(self, sequence: Sequence, guessed: int, right: int) -> None:
        assert 0 <= right <= guessed


class SchedulerMachine(RuleBasedStateMachine):
    """Joins, grants, drops and steps in any order, of two tenants whose prompts begin alike; the pool is too
    small for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(3)
        self.prefixes = Prefixes(6, self.memory.shelf)
        self.scheduler = Scheduler(3, 20, self.prefixes, Nines)
        self.live: dict[str, Sequence] = {}
        self.count = 0

    @rule(
        kind=st.integers(1, 2),
        prompt=st.integers(1, 90),
        granted=st.booleans(),
        max_tokens=st.integers(1, 20),
        tenant=st.sampled_from("ab"),
    )
    def add(self, kind: int, prompt: int, granted: bool, max_tokens: int, tenant: str) -> None:
        self.count += 1
        tokens = [1000 * ord(tenant) + (i if i < 20 else kind * i) for i in range(prompt)]
        made = of(tokens, f"s{self.count}", tenant=tenant, max_tokens=max_tokens, epoch=int(granted))
        self.live[made.request] = made
        self.scheduler.add(made)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), committed=st.lists(st.just(9), max_size=20))
    def grant(self, data: st.DataObject, committed: list[int]) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        if not self.live[name].granted:
            self.live[name].max_tokens += len(committed)
            self.scheduler.grant(name, 2, committed)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.scheduler.drop(name)
        del self.live[name]

    @rule(count=st.integers(1, 5))
    def step(self, count: int) -> None:
        for _ in range(count):
            step = self.scheduler.schedule()
            if step is None:
                assert all(s.computable == 0 for s in self.scheduler.running)
                return
            if chunk := step.chunk:
                assert 0 < chunk.count <= 20 and chunk.start == chunk.sequence.computed
            assert {row.slot for row in step.rows} == set(range(len(step.rows)))
            assert all(s.granted for s in step.samples)
            self.memory.run(step)
            outputs = self.scheduler.postprocess(step, [9] * len(step.samples))
            right = 0
            for guess in step.guesses:
                if outputs[-1].finish or outputs[-1].token != guess:
                    break
                assert step.chunk
                right += 1
                outputs.append(self.scheduler.go_on(step.chunk.sequence, 9, None))
            if step.guesses and step.chunk:
                self.scheduler.judged(step.chunk.sequence, len(step.guesses), right)
            for sequence in step.sequences:
                held = self.memory.slots[sequence.slot][: sequence.computed]
                assert held == sequence.tokens[: sequence.computed], "not its own tokens"
                assert sequence.answered <= sequence.max_tokens
            for output in outputs:
                if output.finish:
                    del self.live[output.request]

    @invariant()
    def slots_are_held_by_the_running_alone(self) -> None:
        slots = [s.slot for s in self.scheduler.running]
        assert len(slots) == len(set(slots)) <= 3
        assert len(self.scheduler.running) + len(self.scheduler.waiting) == len(self.live)

    @invariant()
    def kept_blocks_fit_their_places(self) -> None:
        places = [place for _, place in self.prefixes.placed()]
        assert len(places) == len(set(places)) <= 6


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
