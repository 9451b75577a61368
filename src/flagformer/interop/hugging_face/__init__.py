"""Models of transformers: directories of `save_pretrained` as models of flags, and back.

`FlagformerForCausalLM`, `FlagformerConfig` and `register` need transformers, imported on their first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families import families, family_of
from flagformer.interop.hugging_face.read import load_directory
from flagformer.interop.hugging_face.write import export

__all__ = ["ConversionError", "export", "families", "family_of", "load_directory"]

PRETRAINED = ("FlagformerConfig", "FlagformerForCausalLM", "register")

if not TYPE_CHECKING:  # hidden from type checkers, so that they report unknown names

    def __getattr__(name: str) -> Any:
        if name in PRETRAINED:
            return getattr(import_module(f"{__name__}.pretrained"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
