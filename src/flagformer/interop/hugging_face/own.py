"""Directories that `save_pretrained` of a `FlagformerForCausalLM` wrote, read without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.files import CONFIG, WeightFiles
from flagformer.models.build import build
from flagformer.storage.models import fill

MODEL_TYPE = "flagformer"
PREFIX = "model."  # of the names of its tensors


def own_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flags in a config; ConversionError without them."""
    flags = config.get("flags")
    if not isinstance(flags, dict):
        raise ConversionError([f"config `flags` must be an object, but is {flags!r}"])
    return flags


def load_own(path: Path, config: Mapping[str, Any]) -> nn.Module:
    """The model of the flags in `config.json`, in the dtypes of the files.

    Raises:
        ConversionError: for a config without flags.
        ValueError: for tensors that are missing, unknown or of another shape.
    """
    flags = own_flags(config)
    files = WeightFiles(path)
    model: nn.Module = build(flags)
    state = {name.removeprefix(PREFIX): files.get(name) for name in files.where}
    fill(model, state, path, path / CONFIG)
    return model
