"""Virtual time, and a network that misbehaves: what a world's processes live in.

Everything random comes from one generator, so a history replays exactly. Messages may be dropped, doubled,
delayed and thereby reordered; a node may die, pause, hear nothing or be heard by nobody; NATS may go away.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Node:
    id: str
    alive: bool = True
    paused_until: float = 0.0
    deaf_until: float = 0.0
    mute_until: float = 0.0


class Network:
    def __init__(self, randomness: random.Random, lossy: float):
        self.now = 0.0
        self.calm = False  # nothing goes wrong any more
        self.trace: list[str] = []
        self.nodes: dict[str, Node] = {}
        self._random = randomness
        self._lossy = lossy
        self._down_until = 0.0  # NATS
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._last: dict[tuple[str, str], float] = {}  # arrival of what one said to another in order

    # -- time

    def run(self, over: Callable[[], bool]) -> None:
        while self._events:
            at, _, event = heapq.heappop(self._events)
            self.now = max(self.now, at)
            if over():
                return
            event()

    def at(self, delay: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def every(self, id: str, period: float, event: Callable[[], None]) -> None:
        """As long as the node lives. A paused node makes up for nothing: its timer fires once, late."""

        def fire() -> None:
            node = self.nodes.get(id)
            if node is not None and not node.alive:
                return
            if node is not None and node.paused_until > self.now:
                self.at(node.paused_until - self.now, fire)
                return
            event()
            self.at(period, fire)

        self.at(self._random.uniform(0, period), fire)

    def log(self, text: str) -> None:
        self.trace.append(f"{self.now:8.4f} {text}")

    # -- who is there

    def node(self, id: str) -> Node:
        self.nodes[id] = Node(id)
        return self.nodes[id]

    @property
    def nats_up(self) -> bool:
        return self.now >= self._down_until

    def nats_down(self, seconds: float) -> None:
        self._down_until = max(self._down_until, self.now + seconds)

    def hears(self, node: Node) -> bool:
        return self.nats_up and node.alive and node.deaf_until <= self.now

    def heard(self, node: Node) -> bool:
        return self.nats_up and node.alive and node.mute_until <= self.now

    # -- what is said

    def loses(self) -> bool:
        """Whether this one time something goes wrong."""
        return not self.calm and self._random.random() < self._lossy

    def send(self, source: Node, target: str, what: str, act: Callable[[], None]) -> bool:
        """Whether anybody listened, as the server saw it."""
        node = self.nodes.get(target)
        if not self.nats_up or source.mute_until > self.now or node is None or not node.alive:
            return node is not None and node.alive
        copies = self._random.choice([0, 0, 2]) if self.loses() else 1
        for _ in range(copies):
            delay = self._random.uniform(0.0001, 0.002)
            if self.loses():
                delay = self._random.uniform(0.01, 0.5)
            else:  # NATS keeps the order in which one says things to another
                pair = source.id, target
                delay = max(delay, self._last.get(pair, 0.0) - self.now + 1e-9)
                self._last[pair] = self.now + delay
            self.at(delay, lambda: self._arrive(node, what, act))
        return True

    def _arrive(self, node: Node, what: str, act: Callable[[], None]) -> None:
        if not self.hears(node):
            return
        if node.paused_until > self.now:
            self.at(node.paused_until - self.now, lambda: self._arrive(node, what, act))
            return
        self.log(f"{node.id} <- {what}")
        act()

    def request(
        self,
        source: Node,
        target: str,
        what: str,
        ask: Callable[[], Any],
        answered: Callable[[Any], None],
        failed: Callable[[bool], None],
        timeout: float,
    ) -> None:
        """`failed(gone)` exactly once, or `answered`."""
        done = [False]

        def back(answer: Any) -> None:
            if not done[0]:
                done[0] = True
                answered(answer)

        def over() -> None:
            if source.alive and not done[0]:
                if source.paused_until > self.now:
                    self.at(source.paused_until - self.now, over)
                    return
                done[0] = True
                failed(False)

        def arrive() -> None:
            answer = ask()
            self.send(self.nodes[target], source.id, f"answer to {what}", lambda: back(answer))

        connected = self.nats_up and source.mute_until <= self.now
        if not self.send(source, target, what, arrive) and connected:
            done[0] = True
            self.at(0.001, lambda: failed(True) if source.alive else None)
        else:
            self.at(timeout, over)
