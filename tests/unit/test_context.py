"""How long a context is, as configurations say it."""

from typing import Any

import pytest

from millrace.context import context

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ({}, 32768),
        ({"rope_scaling": None}, 32768),
        ({"rope_scaling": YARN}, 131072),
        ({"rope_scaling": {"type": "yarn", **YARN}}, 131072),
        ({"rope_parameters": {"rope_theta": 1e6, **YARN}}, 131072),
        ({"rope_scaling": YARN, "max_position_embeddings": 131072}, 131072),
        ({"rope_scaling": YARN, "max_position_embeddings": 40960}, 131072),
        ({"rope_scaling": YARN, "max_position_embeddings": 163840}, 163840),
        ({"rope_scaling": {**YARN, "rope_type": "llama3"}}, 32768),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 32768),
        ({"rope_parameters": {"full_attention": YARN}}, 32768),
    ],
)
def test_what_yarn_stretches_is_as_long_as_it_is_stretched(said: dict[str, Any], length: int) -> None:
    assert length == context({"max_position_embeddings": 32768} | said)
