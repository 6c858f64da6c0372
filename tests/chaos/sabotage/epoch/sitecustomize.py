"""On the PYTHONPATH of a service: engines differ, and nobody looks at epochs."""

import sys

from tests.chaos.sabotage.kinds import sitecustomize  # noqa: F401 (it sets the kinds)

if sys.orig_argv[-1] == "gateway":
    from services.gateway.owner import ledger
    from tests.kit.sabotage import EpochlessLedger

    ledger.Ledger = EpochlessLedger  # type: ignore[misc]
if sys.orig_argv[-1] == "detokenizer":
    from services.detokenizer import scribe
    from tests.kit.sabotage import EpochlessScribe

    scribe.Scribe = EpochlessScribe  # type: ignore[misc]
