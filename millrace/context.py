"""How many tokens a model's context has, as its config.json says."""

from collections.abc import Mapping
from typing import Any


def context(config: Mapping[str, Any]) -> int:
    """KeyError, TypeError or ValueError where it does not say.

    Whoever stretches it by YaRN often leaves the length as it was: it is the original one times the factor.
    """
    length = int(config["max_position_embeddings"])
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return length
    name = "original_max_position_embeddings"
    original = config.get(name) or scaling.get(name) or 0
    return max(length, int(original * (scaling.get("factor") or 1)))
