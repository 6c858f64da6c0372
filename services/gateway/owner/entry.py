"""One live request in the ledger: what its client has, and who runs it."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import structs

from millrace import messages as m
from millrace.errors import Failure
from millrace.keys import ANYONE, Tenant
from millrace.subjects import Lane, lane_of, model_key
from millrace.telemetry import child_of, is_sampled
from services.gateway.desk import Ask, Piece
from services.gateway.owner.blame import Blame
from services.gateway.owner.tally import Tally
from services.gateway.visit import Visit


def nobody() -> None:
    """Hears of it."""


@dataclass(slots=True)
class Entry:
    prompt: m.Prompt  # kept to make the job again, should it be lost
    model: str
    opened_at: float
    deadline: float
    tenant: Tenant = ANYONE
    visit: Visit | None = None  # on which it was asked for
    traceparent: str = ""
    stops: list[str] = field(default_factory=list)
    include_stop: bool = False
    keep_special: bool = False
    patient: bool = False  # nobody sees its tokens before the last one
    vector: bool = False  # it is answered with one, by its engine itself: no detokenizer has a part in it
    # what the client has or will get
    committed: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    failure: Failure | None = None
    finish: m.Finish = ""
    first_at: float = 0.0  # its first token was committed; 0: not yet
    spoken_at: float = 0.0  # its last one so far
    gap: float = 0.0  # between the last two times that it spoke
    pace: float = 0.0  # the same, and a stall does not count: the shorter of the last two gaps
    tally: Tally | None = None
    heard: list[str] | None = None  # its texts, where they are recorded
    ended: bool = False
    on_news: Callable[[], None] = nobody
    on_end: Callable[[], None] = nobody
    # the job
    seq: int = 0
    prompt_tokens: int = 0
    echo: str = ""  # the prompt's text, if it was asked for
    cached_tokens: int = 0
    thinking: bool = False
    checked_at: float = 0.0
    # who has it; no engine: it is queued
    epoch: int = 0
    engine: str = ""
    detokenizer: str = ""
    lease: str = ""
    leased_at: float = 0.0
    progress_at: float = 0.0  # last token committed, or granted
    alive_at: float = 0.0  # last proof that its engine works on it
    resumed_from: int = 0
    reached: int = 0  # tokens that its engine is known to have made, committed or not
    kind: str = ""  # of that engine
    said_by: str = ""  # the kind of engine that said what was committed last
    strangers_until: float = 0.0  # until then, engines of other kinds are kept waiting; 0: they were not yet
    owed: int = 0  # tokens its engine said it had sent, when that was more than committed
    resends: int = 0
    resent_at: float = 0.0
    alone: bool = False  # it has its engine for itself
    blame: Blame = field(default_factory=Blame)

    @classmethod
    def of(cls, ask: Ask, gateway: str, now: float, asked: float, *, tags_hidden: bool = False) -> "Entry":
        """`asked`: unix seconds. `tags_hidden`: what its calls stand in has to be shown to be read."""
        visit, tenant = ask.visit, ask.visit.tenant
        prompt = m.Prompt(
            request=f"{gateway}-{secrets.token_hex(16)}",
            attempt=1,
            model=model_key(ask.model),
            input=ask.input,
            sampling=ask.sampling,
            max_tokens=1 if ask.max_tokens == 0 else ask.max_tokens,
            min_tokens=ask.min_tokens,
            stop_ids=ask.stop_ids,
            ignore_eos=ask.ignore_eos,
            tenant=tenant.name,
            logprobs=ask.logprobs,
            echo=ask.echo,
            priority=tenant.priority,
            form=ask.form,
            cut=ask.cut,
            asked=asked,
        )
        return cls(
            prompt=prompt,
            model=ask.model,
            tenant=tenant,
            visit=visit,
            opened_at=now,
            deadline=now + visit.deadline_s,
            traceparent=child_of(visit.traceparent, sampled=is_sampled(visit.traceparent)),
            stops=ask.stops,
            include_stop=ask.include_stop,
            keep_special=ask.keep_special or tags_hidden,
            patient=visit.whole,
            vector=ask.vector,
        )

    def grant(self, claim: m.Claim, detokenizer: str, now: float) -> None:
        """An engine has it from now on, and whoever had it does not."""
        self.epoch += 1
        self.engine, self.kind, self.strangers_until = claim.engine, claim.kind, 0.0
        self.alone = self.blame.suspect
        self.detokenizer = detokenizer
        self.progress_at = self.alive_at = now
        self.resumed_from = self.reached = len(self.committed)
        self.owed = self.resends = 0

    def revoke(self, now: float) -> None:
        """No engine has it any more."""
        self.epoch += 1
        self.engine = ""
        self.checked_at = now

    def commit(self, said: m.Said, skip: int, now: float) -> None:
        """It was said for good. `skip`: so many of its tokens are known already."""
        tokens, texts, odds = said.tokens, said.pieces, said.odds
        assert said.finish != "failed"  # nobody says that to a client as a piece
        last = len(tokens) - 1
        for i in range(skip, last):
            self.pieces.append(Piece(tokens[i], texts[i], "", odds[i] if odds else None))
        self.pieces.append(
            Piece(
                tokens[last],
                texts[last],
                said.finish,
                odds[last] if odds else None,
                stopped=said.stopped,
                vector=said.vector,
            )
        )
        if not self.committed:
            self.cached_tokens = said.cached
            if said.read:
                self.pieces[0] = structs.replace(self.pieces[0], read=said.read)
        self.committed += tokens[skip:]
        if self.heard is not None:
            self.heard += texts[skip:]
        self._count(last + 1 - skip, now)
        gap = now - self.spoken_at
        self.pace, self.gap = min(gap, self.gap), gap
        self.said_by = self.kind
        self.first_at = self.first_at or now
        self.progress_at = self.alive_at = self.spoken_at = now
        self.owed = self.resends = 0
        self.finish = said.finish

    def _count(self, tokens: int, now: float) -> None:
        if self.tally is None or self.vector:
            return
        if self.first_at:
            self.tally.went_on(tokens, now - self.spoken_at)
        else:
            self.tally.began(tokens, now - self.opened_at)

    @property
    def request(self) -> str:
        return self.prompt.request

    @property
    def lane(self) -> Lane:
        return lane_of(self.prompt.model, self.prompt.tenant, self.prompt.priority)

    @property
    def said(self) -> int:
        """Tokens of its text: what stands for a vector is none."""
        return 0 if self.vector else len(self.committed)

    @property
    def end(self) -> str:
        """How it ended: as its text did, or by its failure's code."""
        return self.finish or (self.failure.code if self.failure else "")

    @property
    def queued(self) -> bool:
        return self.seq > 0 and not self.engine

    @property
    def waiting(self) -> m.Waiting:
        """As the engines are told that it waits."""
        prompt, tenant = self.prompt, self.tenant
        return m.Waiting(self.lane.tenant, prompt.priority, tenant.weight, tenant.share)

    @property
    def went_on(self) -> bool:
        """Whether its engine has made a token of it. One that is still on its way counts: that it waits in a
        detokenizer that is paused says nothing of this request."""
        return max(self.reached, len(self.committed)) > self.resumed_from

    @property
    def ref(self) -> m.Ref:
        return m.Ref(self.request, self.epoch)

    @property
    def opened(self) -> m.Opened:
        return m.Opened(
            self.request,
            self.epoch,
            self.engine,
            list(self.committed),
            self.stops,
            self.include_stop,
            self.keep_special,
            self.patient,
        )
