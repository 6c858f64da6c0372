"""How far a converted model is from its fp32 original, and how far is too far."""

from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MOST = {
    "fp32": (0.01, 0.02),
    "fp16": (0.01, 0.02),
    "bf16": (0.02, 0.02),
    "int8": (0.05, 0.05),
    "int4": (0.3, 0.3),
}
"""By quantisation: how many nats of KL, and what share of perplexity, may be lost.

Sound 8-bit conversions lose a tenth of this; 4 bits in blocks of 32 lose a tenth to a third, the more the
smaller the model. What has gone wrong loses many times as much. Agreement is not judged: where a model is
unsure, a harmless difference decides which of two equals comes first.
"""


APART = {"fp32": 0.001, "fp16": 0.001, "bf16": 0.002, "int8": 0.01, "int4": 0.1}
"""By quantisation: how much a vector's cosine with the original's may be below one."""


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    tokens: int  # that were predicted, or of which vectors were made
    perplexity: float = 0.0
    cosine: float | None = None  # on average, of vectors with those of fp32; nothing else is known of them
    original: float | None = None  # the same of the fp32 model
    agreement: float | None = None  # share of tokens that both find likeliest
    kl: float | None = None  # nats a token, of ours from the original
    vocab: int = 0

    @property
    def blank(self) -> bool:
        """The original knows no more of the text than guessing would: random weights, or another language.
        There is nothing then to be faithful to."""
        return self.original is not None and 0 < self.vocab <= self.original

    def faults(self, quant: str) -> list[str]:
        """Why this is not good."""
        if self.cosine is not None:
            least = 1 - APART[quant]
            return [] if self.cosine >= least else [f"cosine is {self.cosine:.4f}, and {least} is needed"]
        assert self.original is not None and self.kl is not None
        if self.blank:
            return []
        kl, share = MOST[quant]
        found = []
        if not self.kl <= kl:  # also what is not a number
            found.append(f"KL is {self.kl:.3f} nats, and {kl} is allowed")
        if not self.perplexity <= self.original * (1 + share):
            found.append(
                f"perplexity is {self.perplexity:.4g} in place of {self.original:.4g}, "
                f"and {share:.0%} more is allowed"
            )
        return found

    def table(self) -> str:
        if self.cosine is not None:
            rows = [("vectors", f"{self.tokens}"), ("cosine with fp32", f"{self.cosine:.5f}")]
        else:
            rows = [("predicted tokens", f"{self.tokens}"), ("perplexity", f"{self.perplexity:.4g}")]
        if self.original is not None and self.agreement is not None and self.kl is not None:
            rows += [
                ("perplexity in fp32", f"{self.original:.4g}"),
                ("top-1 agreement", f"{self.agreement:.2%}"),
                ("KL from fp32", f"{self.kl:.5f} nats"),
            ]
        if self.blank:
            rows.append(("not judged", "fp32 knows no more than guessing"))
        return "\n".join(f"{name:20} {value:>16}" for name, value in rows)


def measure(tokens: list[int], ours: Iterable[Floats], original: Iterable[Floats] | None) -> Quality:
    """From the logits after each token of a text, some tokens at a time, the same tokens in both."""
    at = same = vocab = 0
    loss = exact_loss = kl = 0.0
    others = iter(original) if original is not None else None
    for some in ours:
        following = np.array(tokens[at + 1 : at + 1 + len(some)])
        at += len(some)
        rows = np.arange(len(following))
        found = _log_softmax(some[: len(rows)])
        vocab = found.shape[1]
        loss -= float(found[rows, following].sum(dtype=np.float64))
        if others is None:
            continue
        exact = _log_softmax(next(others)[: len(rows)])
        exact_loss -= float(exact[rows, following].sum(dtype=np.float64))
        same += int((found.argmax(axis=1) == exact.argmax(axis=1)).sum())
        kl += float((np.exp(exact) * (exact - found)).sum(dtype=np.float64))
    count = len(tokens) - 1
    made = Quality(tokens=count, perplexity=_exp(loss / count), vocab=vocab)
    if others is None:
        return made
    return msgspec.structs.replace(
        made, original=_exp(exact_loss / count), agreement=same / count, kl=kl / count
    )


def likeness(ours: Floats, original: Floats) -> Quality:
    """From the states after each token of a text: each is the vector of the text up to there."""
    a, b = ours.astype(np.float64), original.astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return Quality(tokens=len(ours), cosine=float(cosines.mean()))


def _exp(x: float) -> float:
    return float(np.exp(np.float64(x)))


def _log_softmax(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
