"""On the PYTHONPATH of a service: no rule is broken, but an engine may be of another kind than its peers.

As engines on different processors do, they agree about most tokens, not all. What a fenced engine goes on
to say is then not what its successor says, and no token of it may reach a client.
"""

import os
import sys

if sys.orig_argv[-1] == "engine":
    from services.engine.model.sim import SimModel

    kind = int(os.environ.get("CHAOS_KIND", "0"))
    defaults = SimModel.__init__.__kwdefaults__
    assert defaults
    defaults["kind"] = kind
