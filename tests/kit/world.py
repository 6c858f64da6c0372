# mypy: disable-error-code="misc"
# (lambdas that bind a loop variable by a default have no inferable type)
"""A world for the protocol's state machines: clients, processes, a job queue, and what befalls them.

Everything random comes from one seed, so a failing seed replays exactly. The machines are the real ones;
only what carries their messages is simulated (`network.py`), as are the queue (`queue.py`), what clients
want (`wishes.py`) and what engines say (`tongue.py`). What must hold in every world is `promise.py`'s.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from millrace import messages as m
from millrace.subjects import GATEWAY, ORPHANS, Send
from services.detokenizer import scribe
from services.detokenizer.scribe import Scribe
from services.engine.choice.sample import Candidates, choose
from services.engine.jobs import roster
from services.engine.jobs.roster import Roster
from services.engine.loop import StepLoop
from services.engine.steps.prefix import Prefixes
from services.engine.steps.scheduler import Output, Scheduler
from services.engine.steps.sequence import Sequence
from services.gateway.owner.effects import Bury, Check, Delete, Effect, Probe, Resubmit, Settle
from services.gateway.owner.entry import Entry
from services.gateway.owner.ledger import Ledger
from tests.kit.network import Network, Node
from tests.kit.prophet import Prophet
from tests.kit.queue import Queue
from tests.kit.tongue import VOCABULARY, Crash, Model, PoisonedModel, Speller, VectorModel
from tests.kit.weather import Fault, Weather, weather_of
from tests.kit.wishes import Grant, Wish, wished

SLOTS, CHUNK = 4, 8
PLACES = 12  # for blocks of prefixes: too few for all
CALM_S = 4.0
"""From then on nothing goes wrong any more."""

QUIET_S = 60.0
"""Longest a request may take once the faults are over; anything slower is a hang."""

LINGER_S = 2.0
"""After the last answer: what is still held then is held for nothing."""


@dataclass(frozen=True)
class Breakage:
    """A sabotaged rule, to see that the world notices."""

    ledger: type[Ledger] = Ledger
    roster: type[Roster] = Roster
    scribe: type[Scribe] = Scribe
    sampler: Callable[[Candidates, list[Sequence]], list[int]] = choose
    loop: type[StepLoop] = StepLoop


class World:
    def __init__(
        self,
        seed: int,
        breakage: Breakage | None = None,
        weather: Weather | None = None,
        *,
        vectors: bool = False,
    ):
        self.vectors = vectors  # whether each answer is one
        self.random = random.Random(seed)
        self._wants = random.Random(seed)
        drawn = weather_of(self.random)
        self.weather = weather or drawn
        self.net = Network(self.random, self.random.choice(self.weather.losses))
        self._breakage = breakage or Breakage()
        self.queue = Queue(self.net)
        self.released: Counter[tuple[str, str]] = Counter()  # the last epoch, as a detokenizer was told
        self.crashes: Counter[str] = Counter()  # of engines, that a request has caused
        self.crowds: list[str] = []  # where one was to be alone
        self.overtaken = 0  # what was given up that an answer to a ping had told to be gone, a moment before
        self.engines: dict[str, Roster] = {}
        self._loops: dict[str, StepLoop] = {}
        self.scribes: dict[str, Scribe] = {}
        self.gateway = self.net.node("gw")
        self.ledger = self._breakage.ledger("gw")
        self.kinds = self.random.choice(self.weather.kinds)

        poison = self.random.choice(self.weather.poison)
        self._ways: dict[str, int] = {}
        self.wishes = [
            wished(i, self.random, self._wants, self.weather, poison, vector=vectors)
            for i in range(self.random.randint(1, 10))
        ]
        self._over_at = 0.0

    # -- running

    def run(self) -> None:
        for _ in range(self.random.choice(self.weather.engines)):
            self._boot_engine()
        for _ in range(self.random.randint(1, 2)):
            self._boot_scribe()
        self.net.every("gw", 0.05, self._gateway_tick)
        self.net.every("", 0.02, self.queue.redeliver)
        for wish in self.wishes:
            self.net.at(wish.at, lambda wish=wish: self._open(wish))
        for _ in range(self.random.randint(*self.weather.faults)):
            self.net.at(self.random.uniform(0, 3), self._fault)
        self.net.at(CALM_S, self._calm_down)
        self.net.run(self._over)

    def _over(self) -> bool:
        """Long after the last answer, or far too late for one."""
        if not self._over_at and self.net.now > CALM_S + LINGER_S and self._finished():
            self._over_at = self.net.now + LINGER_S
        return self.net.now > (self._over_at or CALM_S + QUIET_S)

    def _finished(self) -> bool:
        return all(w.entry is not None and w.entry.ended for w in self.wishes) and not self.queue.stored

    # -- clients

    def _open(self, wish: Wish) -> None:
        entry = wish.entry = Entry(
            wish.prompt,
            "sim",
            self.net.now,
            self.net.now + 120,
            stops=wish.stops,
            patient=self._wants.random() < 0.5,
            vector=self.vectors,
        )

        def news() -> None:
            wish.got += entry.pieces
            wish.epochs += [entry.epoch] * len(entry.pieces)
            entry.pieces.clear()
            wish.ended_at = self.net.now

        def end() -> None:
            wish.ends += 1

        entry.on_news, entry.on_end = news, end
        self.ledger.open(entry)
        self._submit(wish.prompt)
        if wish.cancel_after is not None:
            self.net.at(wish.cancel_after, lambda: self._cancel(wish))

    def _cancel(self, wish: Wish) -> None:
        assert wish.entry
        if not wish.entry.ended:
            wish.cancelled = True
            self._gateway_does(self.ledger.cancel(wish.prompt.request))

    def _wish_of(self, request: str) -> Wish:
        return next(wish for wish in self.wishes if wish.prompt.request == request)

    def _submit(self, prompt: m.Prompt) -> None:
        """The tokenizer's part: asked again until it is admitted; stored once a request and attempt."""
        wish = self._wish_of(prompt.request)
        if wish.entry is None or wish.entry.ended:
            return
        if not self.net.nats_up:
            self.net.at(0.05, lambda: self._submit(prompt))
            return
        job = m.Job(
            prompt.request,
            prompt.attempt,
            b"".join(i.to_bytes(4, "little") for i in wish.ids),
            prompt.sampling,
            prompt.max_tokens or 0,
            stop_ids=[m.VECTOR if self.vectors else VOCABULARY.eos],
            logprobs=prompt.logprobs,
        )
        seq, count = self.queue.store(job), len(wish.ids)
        entry = wish.entry

        def admitted() -> None:
            entry.prompt_tokens = count
            self._gateway_does(self.ledger.admitted(prompt.request, seq, count, self.net.now))

        self.net.at(self.random.uniform(0, 0.02), admitted)

    # -- the gateway

    def _gateway_tick(self) -> None:
        if self.net.nats_up:
            for id, node in self.net.nodes.items():
                if not self.net.heard(node) or node.paused_until > self.net.now:
                    continue
                if id in self.scribes:
                    here = m.Here("detokenizer", id, 1, "ready")
                elif engine := self.engines.get(id):
                    state = "draining" if engine.leaving else "ready"
                    here = m.Here("engine", id, 1, state, engine.load, SLOTS, "sim", kind=engine.kind)
                else:
                    continue
                self._gateway_does(self.ledger.here(here, self.net.now))
            self._gateway_does(self.ledger.tick(self.net.now))
        else:
            self._gateway_does(self.ledger.expire(self.net.now))

    def _gateway_does(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(_, to, message):
                    self.net.send(
                        self.gateway,
                        to,
                        repr(message),
                        lambda to=to, message=message: self._told(to, message),
                    )
                case Settle(lease, verb):
                    if self.net.nats_up and not self.net.loses():
                        self.queue.settle(lease, verb)
                case Probe(_, to, ping):
                    self._probe(to, ping)
                case Delete(seq):
                    if self.net.nats_up:
                        self.queue.stored.pop(seq, None)
                case Check(request, seq):
                    if self.net.nats_up and seq not in self.queue.stored:
                        self.net.at(
                            0.001, lambda request=request: self._gateway_does(self.ledger.missing(request))
                        )
                case Resubmit(prompt):
                    self._submit(prompt)
                case Bury():
                    pass

    def _probe(self, to: str, ping: m.Ping) -> None:
        def ask() -> m.Pong:
            if to in self.engines:
                return self.engines[to].ping(ping, self._loops[to].steps)
            return m.Pong(to, 0, [])

        self.net.request(
            self.gateway,
            to,
            repr(ping),
            ask,
            lambda pong: self._gateway_does(self.ledger.pong(pong, ping, self.net.now)),
            lambda gone: self._gateway_does(self.ledger.unanswered(to, gone=gone, now=self.net.now)),
            0.22,
        )

    def _hear(self, message: Any) -> None:
        if isinstance(message, m.Delta):
            self._gateway_does(self.ledger.delta(message, self.net.now))
        elif isinstance(message, m.Yielded):
            live = self.ledger.entries
            self.overtaken += sum(
                ref.epoch < live[ref.request].epoch for ref in message.refs if ref.request in live
            )
            self._gateway_does(self.ledger.yielded(message, self.net.now))
        elif isinstance(message, m.Hops):
            self.ledger.hops(message)

    def _claimed(self, claim: m.Claim) -> m.ClaimReply:
        reply, effects = self.ledger.claim(claim, self.net.now)
        if isinstance(reply, m.Granted):
            wish = self._wish_of(claim.request)
            grant = Grant(reply.epoch, self._ways[claim.engine], list(reply.committed), len(wish.got))
            wish.grants.append(grant)
            there = [e for e in self.ledger.entries.values() if e.engine == claim.engine]
            if len(there) > 1 and any(e.alone for e in there):
                self.crowds.append(f"{claim.engine} was granted to one alone, and to others beside it")
        self._gateway_does(effects)
        return reply

    def _recalled(self, recall: m.Recall) -> m.RecallReply:
        reply, effects = self.ledger.recall(recall)
        self._gateway_does(effects)
        return reply

    # -- engines and detokenizers

    def _boot_engine(self) -> None:
        node = self.net.node(f"eng{len(self.net.nodes)}")
        kind = self._ways[node.id] = len(self.net.nodes) % self.kinds
        prophet = Prophet(Model(kind))
        scheduler = Scheduler(SLOTS, CHUNK, Prefixes(PLACES), lambda: prophet)
        model = (VectorModel if self.vectors else PoisonedModel)(kind, SLOTS, PLACES)
        engine = self._breakage.roster(node.id, SLOTS, scheduler, self.net.now, kind=model.kind)

        def deliver(outputs: list[Output]) -> None:
            self._engine_does(node, engine.stepped(outputs, self.net.now))

        loop = self._breakage.loop(
            scheduler, model, deliver, lambda error: None, self._breakage.sampler, clock=lambda: self.net.now
        )

        def step() -> None:
            try:
                loop.step()
            except Crash as crash:
                self.crashes[str(crash)] += 1
                self._kill(node)

        self.engines[node.id], self._loops[node.id] = engine, loop
        self.net.log(f"{node.id} boots")
        self.net.every(node.id, self.random.choice([0.005, 0.02, 0.04]), step)
        self.net.every(node.id, 0.05, lambda: self._engine_does(node, engine.tick(self.net.now)))
        self.net.every(node.id, 0.02, lambda: self._pull(node, engine))

    def _boot_scribe(self) -> None:
        node = self.net.node(f"detok{len(self.net.nodes)}")
        self.scribes[node.id] = self._breakage.scribe(node.id, lambda keep: Speller())
        self.net.log(f"{node.id} boots")

    def _pull(self, node: Node, engine: Roster) -> None:
        if not (self.net.hears(node) and self.net.heard(node)):
            return
        for job, lease, delivery in self.queue.pulled(lambda: engine.room > 0):
            self.net.log(f"{node.id} pulls {job.request[-2:]} delivery {delivery}")
            self._engine_does(node, engine.job(job, lease, delivery, self.net.now))

    def _engine_does(self, node: Node, effects: Iterable[roster.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, roster.Ask):
                claim, engine = effect.claim, self.engines[node.id]

                def replied(reply: Any, claim: m.Claim = claim, engine: Roster = engine) -> None:
                    self._engine_does(node, engine.replied(claim, reply, self.net.now))

                self.net.request(
                    node,
                    effect.owner,
                    repr(claim),
                    lambda claim=claim: self._claimed(claim),
                    replied,
                    lambda gone, claim=claim, engine=engine: self._engine_does(
                        node, engine.unanswered(claim, gone=gone)
                    ),
                    0.4,
                )
            elif isinstance(effect, roster.Tell):
                self._tell(node, effect)
            elif effect.subject is ORPHANS:
                pass
            else:
                to, message = effect.to, effect.message
                act = self._hear if effect.subject is GATEWAY else None
                self.net.send(
                    node,
                    to,
                    repr(message),
                    lambda act=act, to=to, message=message: act(message) if act else self._told(to, message),
                )

    def _tell(self, node: Node, tell: roster.Tell) -> None:
        engine = self.engines[node.id]
        self.net.request(
            node,
            tell.owner,
            repr(tell.holding),
            lambda: self.ledger.holding(tell.holding),
            lambda over: self._engine_does(node, engine.told(tell.owner, over, self.net.now)),
            lambda gone: engine.untold(tell.owner, gone=gone),
            0.4,
        )

    def _told(self, to: str, message: Any) -> None:
        """What an engine or detokenizer hears."""
        node = self.net.nodes[to]
        if engine := self.engines.get(to):
            if isinstance(message, m.Resend):
                self._engine_does(node, engine.resend(message))
            elif isinstance(message, m.Release):
                self._engine_does(node, engine.release(message, self.net.now))
        elif writer := self.scribes.get(to):
            if isinstance(message, m.Frame):
                self._scribe_does(node, writer.frame(message, self.net.now))
            elif isinstance(message, m.Opened):
                self._told_again(to, message.request)
                self._scribe_does(node, writer.opened(message, self.net.now))
            elif isinstance(message, m.Release):
                for ref in message.refs:
                    self.released[to, ref.request] = max(self.released[to, ref.request], ref.epoch)
                self._scribe_does(node, writer.release(message, self.net.now))

    def _told_again(self, id: str, request: str) -> None:
        """What says that it is live has come after what said that it is over: only time can tell."""
        del self.released[id, request]

    def _scribe_does(self, node: Node, effects: Iterable[tuple[str, scribe.Effect]]) -> None:
        for to, effect in effects:
            if isinstance(effect, scribe.Ask):
                recall, writer = effect.recall, self.scribes[node.id]

                def answered(reply: Any, writer: Scribe = writer, recall: m.Recall = recall) -> None:
                    if isinstance(reply, m.Opened):
                        self._told_again(node.id, reply.request)
                        self._scribe_does(node, writer.opened(reply, self.net.now))
                    else:
                        writer.refused(recall.request)

                self.net.request(
                    node,
                    to,
                    repr(recall),
                    lambda recall=recall: self._recalled(recall),
                    answered,
                    lambda gone, writer=writer, recall=recall: writer.refused(recall.request),
                    0.4,
                )
            elif isinstance(effect, m.Delta | m.Hops):
                self.net.send(node, to, repr(effect), lambda effect=effect: self._hear(effect))
            else:
                self.net.send(node, to, repr(effect), lambda to=to, effect=effect: self._told(to, effect))

    # -- faults

    def _fault(self) -> None:
        r, now = self.random, self.net.now
        inner = [n for n in self.net.nodes.values() if n.alive and n.id != "gw"]
        fault = r.choice(self.weather.of)
        # Mostly it hits where it hurts.
        busy = [n for n in inner if n.id in self.engines and self.engines[n.id].load]
        node = r.choice(busy if busy and r.random() < 0.75 else inner) if inner else None
        seconds = r.uniform(*self.weather.lasts)
        self.net.log(f"FAULT {fault.value} {node.id if node else ''} {seconds:.2f}")
        if fault is Fault.NATS:
            self._nats_down(seconds / 2)
        elif fault is Fault.WIPE:
            self.queue.stored.clear()
            self._nats_down(seconds / 6)
        elif fault is Fault.PAUSE_GATEWAY:
            self.gateway.paused_until = now + seconds
        elif fault is Fault.CRASH:
            for each in inner:
                self._kill(each)
        elif node is None:
            pass
        elif fault is Fault.KILL:
            self._kill(node)
        elif fault is Fault.PAUSE:
            node.paused_until = now + seconds
        elif fault is Fault.LEAVE and node.id in self.engines:
            self._engine_does(node, self.engines[node.id].leave(now))
            self.net.at(0.2, lambda: self._kill(node))
        if node is not None and fault in (Fault.CUT, Fault.DEAF):
            node.deaf_until = now + seconds
        if node is not None and fault in (Fault.CUT, Fault.MUTE):
            node.mute_until = now + seconds

    def _kill(self, node: Node) -> None:
        if not node.alive:
            return
        node.alive = False
        self.net.log(f"{node.id} dies")
        boot = self._boot_engine if node.id in self.engines else self._boot_scribe
        self.engines.pop(node.id, None)
        self.scribes.pop(node.id, None)
        self.net.at(self.random.uniform(0.1, 1.0), boot)

    def _nats_down(self, seconds: float) -> None:
        self.net.nats_down(seconds)
        self.net.at(seconds + self.random.uniform(0.0, 0.1), self._nats_back)

    def _nats_back(self) -> None:
        if self.net.nats_up:
            self._gateway_does(self.ledger.reconnected(self.net.now))

    def _calm_down(self) -> None:
        self.net.calm = True
        self.net.log("the faults are over")
