"""The names of parameters in saved models, and the names that version 0.1 gave them."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import TypeVar

Value = TypeVar("Value")

SCHEMA = 2  # of the files that `save` writes; schema 1 is that of version 0.1
READABLE = (1, SCHEMA)

# (pattern in a name of schema 1, its replacement in schema 2): one row for each part that was renamed.
RENAMED = (
    (r"\.(gain|[qk]_gain)\.value$", r".\1.weight"),  # learned scale of GLU gates and of the cosine QK norm
    (r"\.gain$", r".weight"),  # norms, LayerScale, head scale, feedforward of memory slots, dynamic bias
    (r"\.([qk])_gain$", r".\1_weight"),  # RMS norm of queries and keys
    (r"\.fn\.inner\.(weight|bias)$", r".fn.w_in.\1"),  # feedforward and mixture of experts
    (r"\.fn\.outer\.(weight|bias)$", r".fn.w_out.\1"),
    (r"\.fn\.seats\.", r".fn.prefix_kv."),
    (r"\.path\.weights\.", r".path.normalizer."),
    (r"\.path\.mods\.", r".path.score_mods."),
    (r"\.path\.mixes\.", r".path.weight_mods."),
    (r"\.residual\.gains$", r".residual.weight"),
    (r"(^|\.)patches\.places$", r"\1patches.pos_emb"),
)
_RENAMED = tuple((re.compile(pattern), replacement) for pattern, replacement in RENAMED)


def current_name(name: str) -> str:
    """The name in schema 2 of a parameter or buffer of schema 1; names that did not change stay."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def rename_saved(state: Mapping[str, Value], names: Container[str]) -> dict[str, Value]:
    """A state dict with the names of schema 2.

    Args:
        state: saved with the names of schema 1 or 2.
        names: of the model that will load it; these are never changed.
    """
    return {name if name in names else current_name(name): value for name, value in state.items()}
