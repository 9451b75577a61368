"""lm-evaluation-harness: `flagformer eval`, and `FlagformerLM` for `lm_eval.simple_evaluate`.

It needs `pip install 'flagformer[eval]'`, which is imported with `FlagformerLM`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flagformer.lab.lm_eval.scoring import Score, score

if TYPE_CHECKING:
    from flagformer.lab.lm_eval.adapter import FlagformerLM

__all__ = ["FlagformerLM", "Score", "score"]

if not TYPE_CHECKING:  # hidden from type checkers, so that they report unknown names

    def __getattr__(name: str) -> Any:
        if name == "FlagformerLM":
            return import_module(f"{__name__}.adapter").FlagformerLM
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
