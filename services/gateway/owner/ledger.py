"""The gateway's record of live requests: who may speak for each, and what has been said for good.

A pure state machine. Messages, answers and the time come in; effects for the actor to carry out come
back; pieces for the client lie in each entry's `pieces`. Nothing here waits, sends or looks at a clock.

The rules: a token counts only from the current epoch and at the next index. An epoch belongs to one
engine; granting the job again, for whatever reason, starts the next epoch and so fences the last holder,
even one that was only paused and will wake up believing that nothing happened.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import structs

from millrace import messages as m
from millrace.errors import Code, Failure
from millrace.subjects import ACK_WAIT_S, DETOKENIZER, ENGINE, Send
from services.gateway.owner.detokenizers import Detokenizers
from services.gateway.owner.effects import Bury, Check, Delete, Effect, Lost, Probe, Resubmit, Settle
from services.gateway.owner.entry import Entry, nobody
from services.gateway.owner.kin import WAIT_S, Kin
from services.gateway.owner.peers import Peers

RENEW_S = ACK_WAIT_S / 2.5
"""One lost renewal must not cost the lease."""

HANG_S = 10.0
"""An engine that answers pings but makes no step for this long while it holds work is hung."""

RESENDS = 2
"""Unanswered ones until the detokenizer, not the engine, is taken to be at fault."""

SLOW_S = ACK_WAIT_S / 2
"""However slow its steps, an engine is asked after this much silence: what it holds is renewed in time."""

SILENT_S = 0.6
"""It gives a sign of life every half second, and is taken to be silent only after more than this."""


@dataclass(frozen=True)
class Watch:
    silence_s: float = 0.15
    pings: int = 3


class Ledger:
    def __init__(self, gateway: str, watch: Watch | None = None):
        self.gateway = gateway
        self.entries: dict[str, Entry] = {}
        self.counts: Counter[str] = Counter()
        self._watch = watch or Watch()
        self._peers = Peers(self._watch.pings)
        self._detokenizers = Detokenizers()
        self._kin = Kin()
        self._alone: dict[str, str] = {}  # the request that was granted an engine last for itself, by engine

    # -- a request's life as the client sees it

    def find(self, id: str, tenant: str) -> list[Entry]:
        """The tenant's live requests by an id that the client knows: all that one HTTP request asked for."""
        named = self.entries.get(f"{self.gateway}-{m.digits_of(id.replace('_', '-'))}")
        return [
            entry
            for entry in self.entries.values()
            if entry.prompt.tenant == tenant
            and (
                entry is named
                or (entry.visit and named and entry.visit is named.visit)
                or (entry.visit and entry.visit.request_id == id.encode("utf-8", "replace"))
            )
        ]

    def open(self, entry: Entry) -> None:
        self.entries[entry.request] = entry

    def admitted(self, request: str, seq: int, prompt_tokens: int, now: float) -> list[Effect]:
        entry = self.entries.get(request)
        if entry is None:
            return [Delete(seq)]
        entry.seq, entry.prompt_tokens, entry.checked_at = seq, prompt_tokens, now
        return []

    def cancel(self, request: str, failure: Failure | None = None) -> list[Effect]:
        """End it before its time. Idempotent."""
        entry = self.entries.get(request)
        if entry is None:
            return []
        entry.failure = failure
        effects: list[Effect] = []
        if entry.engine:
            effects.append(Settle(entry.lease, "+TERM"))
        elif entry.seq:
            effects.append(Delete(entry.seq))
        return effects + self._end(entry)

    def _end(self, entry: Entry) -> list[Effect]:
        entry.ended = True
        self.counts["ended"] += 1
        del self.entries[entry.request]
        entry.on_end()
        entry.on_news()
        # Who hears of it holds it. Megabytes of prompt shall go now, and not in the collector's next round.
        entry.on_end = entry.on_news = nobody
        return self._release(entry.ref, entry.engine, entry.detokenizer)

    def _over(self, ref: m.Ref) -> bool:
        """For whoever had it then: it has ended, or another has it. What waits to be taken again is not."""
        entry = self.entries.get(ref.request)
        return entry is None or (ref.epoch < entry.epoch and bool(entry.engine))

    @staticmethod
    def _release(ref: m.Ref, engine: str, detokenizer: str, *, again: bool = False) -> list[Effect]:
        effects: list[Effect] = []
        if engine:
            effects.append(Send(ENGINE, engine, m.Release([ref], again)))
        if detokenizer:
            effects.append(Send(DETOKENIZER, detokenizer, m.Release([ref])))
        return effects

    # -- claims: who may run it

    def claim(self, claim: m.Claim, now: float) -> tuple[m.ClaimReply, list[Effect]]:
        entry = self.entries.get(claim.request)
        if entry is None:
            return m.Gone(claim.request), [Settle(claim.lease, "+TERM")]
        entry.blame.acquit(claim.engine)
        if now >= entry.deadline:
            entry.lease = claim.lease
            return m.Gone(claim.request), [Settle(claim.lease, "+TERM"), *self._expire(entry)]
        if entry.engine and now - entry.alive_at < 2 * self._silence(entry):
            # Delivered again though it runs well: a renewal was late. The running one stays.
            self.counts["redelivered_running"] += 1
            entry.lease, entry.leased_at = claim.lease, now
            return m.Gone(claim.request), [Settle(claim.lease, "+WPI")]
        effects: list[Effect] = [Settle(claim.lease, "+WPI")]
        if entry.engine:
            effects += self._revoke(entry, "superseded", now, nak=False)
        entry.lease, entry.leased_at = claim.lease, now
        suspect = entry.blame.suspect
        if suspect and (claim.busy or self._beside(entry, claim.engine)):
            return m.Wait(claim.request), effects
        if not suspect and self._apart(claim.engine):
            return m.Gone(claim.request), [*effects, Settle(claim.lease, "-NAK")]
        strange = bool(entry.said_by and claim.kind and claim.kind != entry.said_by)
        if strange and self._kept_waiting(entry, now):
            self.counts["kept_for_its_kind"] += 1
            return m.Gone(claim.request), [*effects, Settle(claim.lease, "-NAK")]
        reply = self._grant(entry, claim, strange, now)
        if entry.detokenizer:
            effects.append(Send(DETOKENIZER, entry.detokenizer, entry.opened))
        return reply, effects

    def _grant(self, entry: Entry, claim: m.Claim, strange: bool, now: float) -> m.Granted:
        entry.grant(claim, "" if entry.vector else self._pick_detokenizer(now), now)
        if entry.alone:
            self._alone[claim.engine] = entry.request
        if entry.epoch > 1:
            self.counts["resumed"] += 1
        if strange:
            self.counts["resumed_on_another_kind"] += 1
        left_ms = int((entry.deadline - now) * 1000)
        return m.Granted(
            entry.request,
            entry.epoch,
            list(entry.committed),
            entry.detokenizer,
            left_ms,
            entry.alone,
            strange,
        )

    def _beside(self, entry: Entry, engine: str) -> bool:
        """Whether others of ours were granted there, though the engine did not know of it when it asked."""
        return any(other.engine == engine for other in self.entries.values() if other is not entry)

    def _apart(self, engine: str) -> bool:
        """Whether one of ours has that engine for itself, though the engine did not know it when it asked."""
        entry = self.entries.get(self._alone.get(engine, ""))
        return entry is not None and entry.alone and entry.engine == engine

    def _kept_waiting(self, entry: Entry, now: float) -> bool:
        """Whether another kind's claim is refused: for a moment, while the right kind could take the job."""
        if entry.blame.suspect or not self._kin.there(entry.said_by, entry.model, now):
            return False
        if not entry.strangers_until:
            entry.strangers_until = now + WAIT_S
        return now < entry.strangers_until

    def _revoke(
        self, entry: Entry, reason: str, now: float, *, nak: bool = True, blame: bool = False
    ) -> list[Effect]:
        """Take it from its engine, fence that engine, and have the job delivered again."""
        self.counts[f"revoked_{reason}"] += 1
        effects: list[Effect] = [Lost(entry.request, entry.engine, reason)]
        effects += self._release(entry.ref, entry.engine, "", again=nak)
        if blame:
            dead, went_on = reason == "died", entry.went_on
            entry.blame.lost(entry.engine, dead=dead, alone=entry.alone, went_on=went_on)
        entry.revoke(now)
        if blame and entry.blame.hopeless:
            return effects + self._give_up(entry)
        if nak:
            effects.append(Settle(entry.lease, "-NAK"))
        return effects

    def _give_up(self, entry: Entry) -> list[Effect]:
        self.counts["given_up"] += 1
        letter = m.DeadLetter(
            entry.request,
            entry.model,
            Code.JOB_CRASHED,
            entry.blame.deaths,
            len(entry.committed),
            entry.prompt_tokens,
        )
        failure = Failure(
            Code.JOB_CRASHED,
            f"the engine running this request failed {entry.blame.deaths} times; it was given up",
        )
        return [Bury(letter), Settle(entry.lease, "+TERM"), *self.cancel(entry.request, failure)]

    def yielded(self, yielded: m.Yielded, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for ref in yielded.refs:
            entry = self.entries.get(ref.request)
            if entry is not None and entry.engine == yielded.engine and ref.epoch in (0, entry.epoch):
                effects += self._revoke(entry, "yielded", now)
        return effects

    def holding(self, holding: m.Holding) -> m.Release:
        """What an engine has, and need not have any more."""
        return m.Release([ref for ref in holding.refs if self._over(ref)])

    def orphan(self, lease: str) -> list[Effect]:
        """A job of a gateway that is gone (the actor has made sure): nobody waits for it."""
        self.counts["orphans"] += 1
        return [Settle(lease, "+TERM")]

    # -- tokens: what counts

    def delta(self, delta: m.Delta, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for said in delta.said:
            entry = self.entries.get(said.request)
            if entry is None or not self._current(entry, said):
                # Finished, cancelled, or spoken by a holder that lost the job: it is told so.
                self.counts["refused_stale"] += len(said.tokens)
                if entry is None or said.epoch < entry.epoch:
                    ref = m.Ref(said.request, said.epoch)
                    effects += self._release(
                        ref, delta.engine, "" if entry else delta.detokenizer, again=not self._over(ref)
                    )
                continue
            known = self._known(entry, said)
            if known < 0:
                if now - entry.resent_at >= self._watch.silence_s:
                    effects += self._resend(entry, now)
            elif known < len(said.tokens):
                effects += self._commit(entry, said, known, now)
            else:
                self.counts["refused_duplicate"] += len(said.tokens)
        return effects

    def hops(self, hops: m.Hops) -> None:
        """An engine tells of its prefill with the first token, and past every detokenizer."""
        entry = self.entries.get(hops.request)
        if entry is None or entry.engine != hops.id:
            return
        if any(hop.name == "prefill" and hop.epoch == entry.epoch for hop in hops.hops):
            entry.reached = max(entry.reached, entry.resumed_from + 1)

    @staticmethod
    def _current(entry: Entry, said: m.Said) -> bool:
        return said.epoch == entry.epoch

    @staticmethod
    def _known(entry: Entry, said: m.Said) -> int:
        """How many of these tokens are committed already; below zero, so many are missing before them."""
        return len(entry.committed) - said.index

    def _commit(self, entry: Entry, said: m.Said, skip: int, now: float) -> list[Effect]:
        if said.finish == "failed":
            return self._fail(entry, said, skip, now)
        entry.commit(said, skip, now)
        if not said.finish:
            entry.on_news()
            return []
        return [Settle(entry.lease, "+ACK"), *self._end(entry)]

    def _fail(self, entry: Entry, said: m.Said, skip: int, now: float) -> list[Effect]:
        """Its grammar was followed as far as to the last of these tokens, which is none of the answer's."""
        before = len(said.tokens) - 1
        if skip < before:
            heard = structs.replace(
                said, tokens=said.tokens[:-1], pieces=said.pieces[:-1], odds=said.odds[:-1], finish=""
            )
            entry.commit(heard, skip, now)
        failure = Failure(
            Code.INVALID_REQUEST,
            f"after {said.index + before} tokens the grammar allows nothing, or takes more work than it may",
        )
        return self.cancel(entry.request, failure)

    def recall(self, recall: m.Recall) -> tuple[m.RecallReply, list[Effect]]:
        entry = self.entries.get(recall.request)
        if entry is None or entry.epoch != recall.epoch:
            ref = m.Ref(recall.request, recall.epoch)
            return m.Gone(recall.request), self._release(ref, recall.engine, "", again=not self._over(ref))
        return entry.opened, []

    def _resend(self, entry: Entry, now: float) -> list[Effect]:
        self.counts["resends"] += 1
        entry.resends += 1
        entry.resent_at = now
        gap = m.Gap(entry.request, entry.epoch, len(entry.committed), entry.detokenizer)
        return [Send(ENGINE, entry.engine, m.Resend([gap]))]

    # -- the watchdog

    def tick(self, now: float) -> list[Effect]:
        """While NATS is there: every 50 ms or so."""
        effects: list[Effect] = []
        quiet: dict[str, list[m.Ref]] = {}  # engines, and what is asked of each
        mute: dict[str, list[m.Ref]] = {}  # detokenizers, of which only a sign of life is asked
        for entry in list(self.entries.values()):
            if now >= entry.deadline:
                effects += self._expire(entry)
            elif not entry.engine:
                if entry.seq and now - entry.checked_at > 2.0:
                    entry.checked_at = now
                    effects.append(Check(entry.request, entry.seq))
            else:
                if now - entry.leased_at >= RENEW_S and now - entry.alive_at < ACK_WAIT_S:
                    entry.leased_at = now
                    effects.append(Settle(entry.lease, "+WPI"))
                if now - entry.alive_at >= self._silence(entry) or entry.owed > len(entry.committed):
                    quiet.setdefault(entry.engine, []).append(entry.ref)
                    if entry.detokenizer:
                        mute.setdefault(entry.detokenizer, [])
        for subject, asked in ((ENGINE, quiet), (DETOKENIZER, mute)):
            for id, refs in asked.items():
                if self._peers.ask(id, now):
                    effects.append(Probe(subject, id, m.Ping(refs)))
        return effects

    def _silence(self, entry: Entry) -> float:
        """How long it may say nothing before its engine is asked: slow steps are no silence."""
        return max(self._watch.silence_s, min(1.5 * entry.pace, SLOW_S))

    def expire(self, now: float) -> list[Effect]:
        """While NATS is away: time runs out all the same."""
        effects: list[Effect] = []
        for entry in list(self.entries.values()):
            if now >= entry.deadline:
                effects += self._expire(entry)
        return effects

    def _expire(self, entry: Entry) -> list[Effect]:
        seconds = entry.deadline - entry.opened_at
        failure = Failure(
            Code.DEADLINE_EXCEEDED,
            f"the request's deadline of {seconds:g} s passed after {len(entry.committed)} tokens",
        )
        self.counts["expired"] += 1
        return self.cancel(entry.request, failure)

    def pong(self, pong: m.Pong, asked: m.Ping, now: float) -> list[Effect]:
        stepped_at = self._peers.answered(pong, now)
        held = {h.request: h for h in pong.held}
        effects: list[Effect] = []
        for ref in asked.refs:
            entry = self.entries.get(ref.request)
            if entry is None or entry.epoch != ref.epoch or entry.engine != pong.id:
                continue
            has = held.get(ref.request)
            if has is None or has.epoch != entry.epoch:
                effects += self._revoke(entry, "forgotten", now)
            elif has.sent <= len(entry.committed) and now - max(stepped_at, entry.progress_at) > HANG_S:
                effects += self._revoke(entry, "hung", now, blame=True)
            else:
                entry.alive_at = now
                entry.reached = max(entry.reached, has.sent)
                effects += self._collect(entry, has.sent, now)
        return effects

    def _collect(self, entry: Entry, sent: int, now: float) -> list[Effect]:
        """Its engine has sent `sent` tokens. If they were owed already last time, they got lost."""
        have = len(entry.committed)
        if sent <= have:
            return []
        if not (have < entry.owed):
            entry.owed = sent
            return []
        entry.owed = 0
        if entry.resends >= RESENDS and not entry.vector:
            other = self._pick_detokenizer(now, but=entry.detokenizer)
            if other:
                self.counts["detokenizers_switched"] += 1
                return self._switch(entry, other, now)
        return self._resend(entry, now)

    def unanswered(self, id: str, *, gone: bool, now: float) -> list[Effect]:
        """A probe of an engine or a detokenizer came to nothing; `gone`: nobody listens there."""
        if not self._peers.unanswered(id, gone=gone, now=now):
            return []
        # One that still says that it is there cannot be reached: no request has silenced it.
        blame = gone or not self._kin.heard_since(id, now - SILENT_S)
        self._kin.gone(id)
        self._alone.pop(id, None)
        effects = self._detokenizer_gone(id, now)
        for entry in list(self.entries.values()):
            if entry.engine == id:
                effects += self._revoke(entry, "died" if gone else "silent", now, blame=blame)
        return effects

    def missing(self, request: str) -> list[Effect]:
        """The job is not stored any more though nobody runs it: make it again from what we hold."""
        entry = self.entries.get(request)
        if entry is None or entry.engine:
            return []
        self.counts["resubmitted"] += 1
        entry.seq = 0
        entry.prompt = structs.replace(entry.prompt, attempt=entry.prompt.attempt + 1)
        return [Resubmit(entry.prompt)]

    def reconnected(self, now: float) -> list[Effect]:
        """NATS is back. What was on its way is lost; silence until now says nothing of anybody."""
        self._peers.reconnected(now)
        self._detokenizers.reconnected(now)
        for entry in self.entries.values():
            entry.alive_at = entry.progress_at = now
            entry.checked_at = min(entry.checked_at, now - 1.5)  # a queued job is looked for soon
        return self._resend_all(self.entries.values(), now)

    def _resend_all(self, entries: Iterable[Entry], now: float) -> list[Effect]:
        gaps: dict[str, list[m.Gap]] = {}
        for entry in entries:
            if entry.engine:
                entry.resent_at = now
                gap = m.Gap(entry.request, entry.epoch, len(entry.committed), entry.detokenizer)
                gaps.setdefault(entry.engine, []).append(gap)
        return [Send(ENGINE, engine, m.Resend(list_)) for engine, list_ in gaps.items()]

    # -- who is there

    def here(self, here: m.Here, now: float) -> list[Effect]:
        self._kin.heard(here, now)
        if self._peers.back(here.id):
            for entry in self.entries.values():
                entry.blame.acquit(here.id)
        if here.role == "detokenizer":
            if here.state != "ready":
                return self._detokenizer_gone(here.id, now)
            if self._detokenizers.ready(here.id, now):
                waiting = [e for e in self.entries.values() if e.engine and not (e.detokenizer or e.vector)]
                return [effect for entry in waiting for effect in self._switch(entry, here.id, now)]
        if self._peers.grace(now) and here.role == "engine":
            return self._resend_all((e for e in self.entries.values() if e.engine == here.id), now)
        return []

    def _pick_detokenizer(self, now: float, but: str = "") -> str:
        return self._detokenizers.pick((entry.detokenizer for entry in self.entries.values()), now, but)

    def _detokenizer_gone(self, id: str, now: float) -> list[Effect]:
        if not self._detokenizers.gone(id):
            return []
        other = self._pick_detokenizer(now)
        effects: list[Effect] = []
        for entry in self.entries.values():
            if entry.engine and entry.detokenizer == id:
                self.counts["detokenizers_switched"] += 1
                entry.detokenizer = ""
                if other:
                    effects += self._switch(entry, other, now)
        return effects

    def _switch(self, entry: Entry, detokenizer: str, now: float) -> list[Effect]:
        entry.detokenizer = detokenizer
        entry.resends = entry.owed = 0
        return [Send(DETOKENIZER, detokenizer, entry.opened), *self._resend(entry, now)]
