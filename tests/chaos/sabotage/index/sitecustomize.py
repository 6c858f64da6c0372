"""On the PYTHONPATH of a service: its gateway commits what it is told, whatever its place in the answer."""

import sys

if sys.orig_argv[-1] == "gateway":
    from services.gateway.owner import ledger
    from tests.kit.sabotage import IndexlessLedger

    ledger.Ledger = IndexlessLedger  # type: ignore[misc]
