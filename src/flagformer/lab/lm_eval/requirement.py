"""lm_eval, imported only by this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_lm_eval(module: str = "lm_eval") -> Any:
    """The package, or a module of it; ImportError with the way to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in ("lm_eval", "transformers", "datasets"):
            raise
        raise ImportError(
            f"tasks of lm_eval need {error.name}, which is not installed: `pip install 'flagformer[eval]'`"
        ) from None
