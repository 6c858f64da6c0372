"""A ledger that owns one request, and what engines and detokenizers tell it."""

from millrace import messages as m
from services.gateway.owner.effects import Effect, Settle
from services.gateway.owner.entry import Entry
from services.gateway.owner.ledger import Ledger

REQUEST = "gw-" + "0" * 32


def owned(*, deadline: float = 100.0) -> tuple[Ledger, Entry]:
    ledger = Ledger("gw")
    prompt = m.Prompt(REQUEST, 1, "sim", m.Text("hi"), m.Sampling(1))
    entry = Entry(prompt, "sim", opened_at=0.0, deadline=deadline)
    ledger.open(entry)
    ledger.here(m.Here("detokenizer", "d1", 1, "ready"), 0.0)
    ledger.admitted(REQUEST, 7, 3, 0.0)
    return ledger, entry


def claim(
    ledger: Ledger, engine: str = "e1", lease: str = "L1", now: float = 0.0, busy: int = 0
) -> m.ClaimReply:
    return ledger.claim(m.Claim(REQUEST, engine, lease, busy), now)[0]


def said(epoch: int, index: int, *tokens: int, finish: m.Finish = "", engine: str = "e1") -> m.Delta:
    return m.Delta(
        engine, "d1", [m.Said(REQUEST, epoch, index, list(tokens), [f"{t}." for t in tokens], finish)]
    )


def verbs(effects: list[Effect]) -> list[tuple[str, str]]:
    return [(e.lease, e.verb) for e in effects if isinstance(e, Settle)]
