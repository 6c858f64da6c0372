"""The sampler's rule, written for the eye: one row, one token at a time, in Python's own numbers."""

import math

from services.engine.steps.sequence import Sequence


def edited(logits: list[float], sequence: Sequence) -> list[float]:
    """The logits of one row as its request has them."""
    s = sequence.sampling
    prompt, answer = sequence.tokens[: sequence.prompt_len], sequence.tokens[sequence.prompt_len :]
    row = list(logits)
    for token, bias in s.bias.items():
        if token < len(row):
            row[token] += bias
    if len(answer) < sequence.min_tokens:
        for token in sequence.stop_ids:
            if token < len(row):
                row[token] = -math.inf
    for token in {*prompt, *answer}:
        row[token] = row[token] / s.repetition if row[token] > 0 else row[token] * s.repetition
    for token in set(answer):
        row[token] -= s.frequency * answer.count(token)
        row[token] -= s.presence
    if sequence.allowed is not None:
        words = sequence.allowed.tolist()
        words += [0] * len(row)  # what the grammar does not know it does not allow
        row = [x if words[i // 32] >> (i % 32) & 1 else -math.inf for i, x in enumerate(row)]
    return row


def kept(logits: list[float], sequence: Sequence) -> list[tuple[int, float]]:
    """The tokens that may be chosen, best first, and how much each weighs."""
    s = sequence.sampling
    row = edited(logits, sequence)
    order = sorted((i for i in range(len(row)) if row[i] > -math.inf), key=lambda i: (-row[i], i))
    if s.temperature < 1e-5:
        return [(order[0], 1.0)]
    weights = [(i, math.exp((row[i] - row[order[0]]) / s.temperature)) for i in order]
    weights = [(i, weight) for i, weight in weights if weight >= s.min_p]
    weights = weights[: s.top_k or None]
    total = math.fsum(weight for _, weight in weights)
    found: list[tuple[int, float]] = []
    mass = 0.0
    for i, weight in weights:
        if found and mass >= s.top_p * total:
            break
        found.append((i, weight))
        mass += weight
    return found


def choose(logits: list[float], sequence: Sequence, random: float) -> int:
    tokens = kept(logits, sequence)
    mark = random * math.fsum(weight for _, weight in tokens)
    for i, weight in tokens:
        mark -= weight
        if mark < 0:
            return i
    return tokens[-1][0]
