"""Millrace's own folders among its user's, by the XDG standard: data, state, and what can be made again."""

import os
from pathlib import Path
from typing import Literal

USUAL = {"XDG_DATA_HOME": ".local/share", "XDG_STATE_HOME": ".local/state", "XDG_CACHE_HOME": ".cache"}


def ours(variable: Literal["XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"]) -> Path:
    given = os.environ.get(variable, "")
    # The standard says that a relative path here is to be ignored.
    return (Path(given) if given.startswith("/") else _home() / USUAL[variable]) / "millrace"


def _home() -> Path:
    """A user of a container may have none: then nothing is found there, and nothing can be kept."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")
