"""What has been counted of one model's requests. The histograms are made once: a token is an addition."""

from collections import Counter

from millrace import messages as m
from millrace.metrics import SECONDS, TOKENS, Histogram

ENDS = {"stop": "stop", "tool_calls": "stop", "length": "length", "cancelled": "abort"}
"""vLLM's words for how a request ended; anything else is an error."""


class Tally:
    __slots__ = (
        "between",
        "counts",
        "decode",
        "first",
        "generated",
        "generation",
        "inference",
        "prefill",
        "prompt",
        "queue",
        "whole",
    )

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.generated = 0  # tokens
        self.first = Histogram(SECONDS)
        self.between = Histogram(SECONDS)
        self.whole = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.prefill = Histogram(SECONDS)
        self.decode = Histogram(SECONDS)
        self.inference = Histogram(SECONDS)
        self.prompt = Histogram(TOKENS)
        self.generation = Histogram(TOKENS)

    def began(self, tokens: int, seconds: float) -> None:
        """The first tokens of an answer came, mostly one, so long after it was asked for."""
        self.generated += tokens
        self.first.observe(seconds)
        if tokens > 1:
            self.between.observe(0.0, tokens - 1)

    def went_on(self, tokens: int, seconds: float) -> None:
        """More of them, so long after those before."""
        self.generated += tokens
        self.between.observe(seconds / tokens, tokens)

    def ended(self, finish: str, prompt: int, cached: int, generated: int, seconds: float) -> None:
        end = ENDS.get(finish, "error")
        self.counts[f"ended_{end}"] += 1
        self.counts["prompt_tokens"] += prompt
        self.counts["cached_tokens"] += cached
        if end in ("stop", "length"):
            self.whole.observe(seconds)
            self.prompt.observe(prompt)
            self.generation.observe(generated)

    def spent(self, queue: float | None, prefill: float | None, decode: float | None) -> None:
        for histogram, seconds in ((self.queue, queue), (self.prefill, prefill), (self.decode, decode)):
            if seconds is not None:
                histogram.observe(seconds)
        if prefill is not None and decode is not None:
            self.inference.observe(prefill + decode)

    def told(self, model: str, waiting: int) -> m.Tallied:
        spreads = {
            name: m.Spread(histogram.sum, histogram.counts)
            for name in self.__slots__
            if isinstance(histogram := getattr(self, name), Histogram)
        }
        return m.Tallied(model, {**self.counts, "generated": self.generated, "waiting": waiting}, spreads)
