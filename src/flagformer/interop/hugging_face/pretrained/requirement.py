"""transformers, imported only by this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_transformers() -> Any:
    """The package; ImportError with the way to install it."""
    try:
        return import_module("transformers")
    except ImportError:
        raise ImportError(
            "`flagformer.interop.hugging_face.pretrained` needs transformers, which is not installed: "
            "`pip install 'flagformer[hf]'`"
        ) from None
