"""How a process says to whoever runs its container that it is well: a file, written anew twice a second.

A probe that asked over the network would tell of the network, and an orchestrator that restarts healthy
processes because NATS is away makes a short trouble a long one.
"""

import time
from pathlib import Path

STALE_S = 5.0
"""Ten times the pause between two writings: a loop that was kept from its turn for so long is not well."""


def tell(path: Path, state: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(f"{state}\n")
    part.replace(path)


def ailment(path: Path, *, live: bool, now: float | None = None) -> str:
    """What is wrong with the process that writes this file, in a line; "" if it is well. `live` asks only
    whether it runs at all, not whether it has become ready or is leaving."""
    try:
        state = path.read_text().strip()
        age = (time.time() if now is None else now) - path.stat().st_mtime
    except FileNotFoundError:
        return f"{path} is not there: the process has not begun, or runs without --alive"
    if age > STALE_S:
        return f"it last said that it is {state} {age:.0f} s ago"
    return "" if live or state == "ready" else f"it is {state}"
