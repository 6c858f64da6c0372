"""What fits into a machine, and what to expect of it: arithmetic alone.

    resident = weights + engines x (BASE + (slots + spare) x (context x token + logits) + prefixes)    at most
               and for a draft its weights, and its one slot (and its own) in each engine
               and on a GPU the weights once more for each engine but the first
               and in fast mode context x wide in each engine
    seconds  = (read + context x token) / (SHARE x bandwidth) + layers x LAYER_S        a token of one stream

A slot holds a whole context from the first token on, so what was admitted can always end: no running
sequence waits for memory. (A spare slot or two are the engine's own.)
"""

from dataclasses import dataclass, replace

from millrace.columns import size

SLOTS = 16
"""Where nobody says how many, and so many fit."""

BASE = 256 << 20
"""An engine without a model, and what its steps need in passing: 120 MB and some tens, measured; doubled."""

USABLE = 0.9
"""Of a machine's memory; the rest is the system's, and the other processes' of the service."""

SHARE = 0.66
LAYER_S = 60e-6
"""What a lone stream reaches of the memory's bandwidth, and what a layer costs besides. From three models on
two cores that read 33 GB/s: 3.4 million parameters decoded 2,700 to 4,100 tokens a second (this says 2,500),
135 million 103 to 112 (126), 600 million 33 (34)."""


class CannotFit(ValueError):
    """It never will on this machine; the message has the numbers."""


@dataclass(frozen=True)
class Needs:
    """What a model takes."""

    weights: int  # bytes in memory
    read: int  # of them, by one step of decoding
    token: int  # bytes of keys and values of one token
    vocab: int
    context: int  # tokens, as the model has it
    layers: int = 0
    wide: int = 0  # bytes of a token of the one prompt that is computed, where it lies beside its slot
    spare: int = 1  # slots, beside those that are asked for

    @property
    def logits(self) -> int:
        return 4 * self.vocab

    def slot(self, context: int) -> int:
        return min(context, self.context) * self.token + self.logits


@dataclass(frozen=True)
class Memory:
    """Of a machine, or of the part of it that its processes may use."""

    total: int
    available: int
    gpu: bool = False


@dataclass(frozen=True)
class Fit:
    needs: Needs
    memory: Memory
    slots: int
    context: int
    prefixes: int  # bytes
    engines: int = 1  # that share the memory, and the weights
    draft: Needs | None = None  # of the model that guesses, which has one slot

    @property
    def slots_bytes(self) -> int:
        return (self.slots + self.needs.spare) * self.needs.slot(self.context) + self.wide

    @property
    def drafts_bytes(self) -> int:
        """Of a draft's slots, in each engine."""
        return 2 * self.draft.slot(self.context) if self.draft else 0

    @property
    def weights(self) -> int:
        return self.needs.weights + (self.draft.weights if self.draft else 0)

    @property
    def resident(self) -> int:
        each = BASE + self.slots_bytes + self.drafts_bytes + self.prefixes
        return self._copies * self.weights + self.engines * each

    @property
    def most_slots(self) -> int:
        """With contexts of this length."""
        room = self._room - self.drafts_bytes - self.wide
        return max(0, room // self.needs.slot(self.context) - self.needs.spare)

    @property
    def longest(self) -> int:
        """The longest context with so many slots."""
        slots = self.slots + self.needs.spare
        token, logits = slots * self.needs.token + self.needs.wide, slots * self.needs.logits
        if self.draft:
            token, logits = token + 2 * self.draft.token, logits + 2 * self.draft.logits
        left = self._room - logits
        return max(0, min(self.needs.context, left // token if token else left))

    @property
    def left(self) -> int:
        return max(0, self._room - self.slots_bytes - self.drafts_bytes)

    @property
    def wide(self) -> int:
        """Of the prompt that fast mode computes, in each engine; a part of the slots' bytes."""
        return self.context * self.needs.wide

    @property
    def _room(self) -> int:
        left = int(self._memory * USABLE) - self._copies * self.weights
        return max(0, left // self.engines - BASE)

    @property
    def _copies(self) -> int:
        """Of the weights: engines map the same file, but what is on a GPU is one engine's alone."""
        return self.engines if self.memory.gpu else 1

    @property
    def _memory(self) -> int:
        """A GPU's is taken at the start, all of it, and what others have of it is not to be had. Engines that
        share one start together, and the first is no other to the second."""
        alone = self.memory.gpu and self.engines == 1
        return self.memory.available or self.memory.total if alone else self.memory.total

    def __str__(self) -> str:
        many = f", with {self.engines} engines" if self.engines > 1 else ""
        draft = (
            f"a draft {size(self.draft.weights + self.engines * self.drafts_bytes)}, " if self.draft else ""
        )
        return (
            f"{self.slots} slots of {self.context} tokens take up to {size(self.slots_bytes)} "
            f"({size(self.needs.token)} a token), weights {size(self.needs.weights)}, "
            f"{draft}prefixes up to {size(self.prefixes)}: {size(self.resident)} in all{many}. "
            f"The {'GPU' if self.memory.gpu else 'machine'} has {size(self.memory.total)}, of which "
            f"{size(self.memory.available)} are available"
        )


def fit(
    needs: Needs,
    memory: Memory,
    *,
    slots: int = 0,
    context: int = 0,
    prefixes: int = 0,
    engines: int = 1,
    draft: Needs | None = None,
) -> Fit:
    """As asked for, if that can fit; as many slots as fit where none were asked for, and prefixes in what is
    left. `context` 0 is the model's own."""
    context = min(context or needs.context, needs.context)
    tried = Fit(needs, memory, slots or SLOTS, context, 0, max(1, engines), draft)
    if not slots:
        tried = replace(tried, slots=max(1, min(SLOTS, tried.most_slots)))
    if not replace(tried, slots=1).longest:
        raise CannotFit(f"{tried}. Not one token fits: it needs more memory, or a smaller model")
    if tried.slots > tried.most_slots:
        raise CannotFit(
            f"{tried}. At most {tried.most_slots} slots of {context} tokens fit, with {tried.slots} slots "
            f"{tried.longest} tokens at most: set --slots or --max-len"
        )
    return replace(tried, prefixes=min(prefixes, tried.left))


def tokens_per_second(needs: Needs, bandwidth: float, context: int) -> float:
    """Of one stream that has come so far."""
    return 1 / ((needs.read + context * needs.token) / (SHARE * bandwidth) + needs.layers * LAYER_S)
