"""The tables of all families; a new one is added to `MODULES`."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.family import Family

MODULES = (
    "llama", "qwen", "olmo", "gemma", "moe", "deepseek", "gpt2", "layernorm", "like_llama", "parallel",
    "falcon", "mpt", "apertus", "hybrid", "qwen35", "mamba", "llama4", "encoders", "modernbert", "deberta",
    "pairs", "speech", "vision",
)  # fmt: skip


@cache
def families() -> dict[str, Family]:
    """model_type -> table."""
    found = {}
    for name in MODULES:
        for family in import_module(f"{__name__}.{name}").FAMILIES:
            found[family.model_type] = family
    return found


def family_of(model_type: Any) -> Family:
    """The table of a model type; ConversionError for others."""
    if isinstance(model_type, str) and model_type in families():
        return families()[model_type]
    near = get_close_matches(str(model_type), families(), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ", see docs/reference/models.md"
    raise ConversionError([f"config `model_type`: {model_type!r} has no table{hint}"])
