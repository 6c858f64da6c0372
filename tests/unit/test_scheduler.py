"""The scheduler: decode first, one bounded chunk beside it, no slot lost."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millrace.messages import Sampling
from services.engine.scheduler import Chunk, Scheduler
from services.engine.sequence import Sequence


def sequence(name: str, prompt: int = 3, *, epoch: int = 1, max_tokens: int = 4) -> Sequence:
    return Sequence(name, prompt, list(range(1, prompt + 1)), Sampling(1), max_tokens, epoch=epoch)


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


class SchedulerMachine(RuleBasedStateMachine):
    """Joins, grants, drops and steps in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(slots=3, chunk=4)
        self.live: dict[str, Sequence] = {}
        self.fed: dict[str, list[int]] = {}
        self.count = 0

    @rule(prompt=st.integers(1, 12), granted=st.booleans(), max_tokens=st.integers(1, 5))
    def add(self, prompt: int, granted: bool, max_tokens: int) -> None:
        self.count += 1
        made = sequence(f"s{self.count}", prompt, epoch=int(granted), max_tokens=max_tokens)
        self.live[made.request] = made
        self.fed[made.request] = []
        self.scheduler.add(made)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), committed=st.lists(st.integers(100, 200), max_size=3))
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

    @rule()
    def step(self) -> None:
        step = self.scheduler.schedule()
        if step is None:
            assert all(s.computable == 0 for s in self.scheduler.running)
            return
        for row in step.rows:
            self.fed[row.request].append(row.tokens[row.computed])
        if step.chunk:
            chunk = step.chunk
            assert 0 < chunk.count <= 4 and chunk.start == chunk.sequence.computed
            self.fed[chunk.sequence.request] += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
        assert all(s.granted for s in step.samples)
        for output in self.scheduler.postprocess(step, [9] * len(step.samples)):
            if output.finish:
                del self.live[output.request]

    @invariant()
    def every_token_is_fed_once_and_in_order(self) -> None:
        for name, made in self.live.items():
            assert self.fed[name] == made.tokens[: made.computed]

    @invariant()
    def slots_are_held_by_the_running_alone(self) -> None:
        slots = [s.slot for s in self.scheduler.running]
        assert len(slots) == len(set(slots)) <= 3
        assert len(self.scheduler.running) + len(self.scheduler.waiting) == len(self.live)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
