"""Flat flags -> a model: what study files, saved models and the command line use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flagformer.flags import LAYER_SCOPES, Finding, FlagError, nearest
from flagformer.flags.others import recognise
from flagformer.stack.sizes import within_memory
from flagformer.wrappers.flat import MODELS, build_flat
from flagformer.wrappers.memformer import Memformer
from flagformer.wrappers.storage import load_model
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer

# Models that are more than token ids around one stack; each declares flags of its own.
WHOLE: dict[str, type[XTransformer] | type[ViTransformerWrapper] | type[Memformer]] = {
    "xtransformer": XTransformer,
    "memformer": Memformer,
    "vit": ViTransformerWrapper,
}


def build(flags: Mapping[str, Any]) -> Any:
    """A model of flat flags.

    Args:
        flags: `model`, and what that kind of model takes. "decoder" (when left out), "encoder" and
            "prefix_decoder" make a TransformerWrapper of `num_tokens`, `max_seq_len`, `dim`, `depth` and any
            flag of `docs/flags.md`; "xtransformer" an XTransformer of `dim` and the same flags behind `enc_`
            and `dec_`; "memformer" a Memformer of these and `num_memory_slots`; "vit" a ViTransformerWrapper
            of `image_size`, `patch_size` and flags of its layers.

    Raises:
        FlagError: every mistake at once.
    """
    if foreign := recognise(flags):
        text = f"these settings are {foreign.what}, no flags of this library; {foreign.advice}"
        raise FlagError([Finding("model", text)])
    rest = dict(flags)
    kind = rest.pop("model", "decoder")
    kinds = (*MODELS, *WHOLE)
    if kind not in kinds:
        known = ", ".join(f"'{name}'" for name in kinds)
        text = f"`model` must be one of {known}, but is {kind!r}{nearest(str(kind), kinds)}"
        raise FlagError([Finding("model", text)])

    def make() -> Any:
        return WHOLE[kind].from_flags(rest) if kind in WHOLE else build_flat(kind, rest)

    return within_memory(flags, make, make)


def check(flags: Mapping[str, Any]) -> None:
    """Raises what `build` would raise, without memory for weights."""
    with torch.device("meta"):
        build(flags)


def load(directory: str | Path) -> nn.Module:
    """The model that `model.save(directory)` wrote. Nothing in the files is executed."""
    return load_model(Path(directory), build)


__all__ = ["LAYER_SCOPES", "MODELS", "WHOLE", "build", "check", "load"]
