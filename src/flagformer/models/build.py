"""Build a model from flat flags, for study files, saved models and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flagformer.flags import LAYER_SCOPES, Finding, FlagError, allowed_modules, nearest
from flagformer.flags.others import recognise
from flagformer.stack.sizes import within_memory
from flagformer.storage.models import load_model
from flagformer.wrappers.classifier import SequenceClassifier
from flagformer.wrappers.continuous import ContinuousTransformerWrapper
from flagformer.wrappers.memformer import Memformer
from flagformer.wrappers.routing import RoutingTransformerLM
from flagformer.wrappers.routing_pair import RoutingTransformerEncDec
from flagformer.wrappers.transformer import MODELS, TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer

# Models with more than one stack, or with inputs other than token ids; each declares its own flags.
WHOLE: dict[
    str,
    type[XTransformer | ViTransformerWrapper | Memformer | SequenceClassifier | ContinuousTransformerWrapper],
] = {
    "xtransformer": XTransformer,
    "memformer": Memformer,
    "vit": ViTransformerWrapper,
    "classifier": SequenceClassifier,
    "continuous": ContinuousTransformerWrapper,
}
# Models whose flags have the names of the package routing-transformer.
ROUTING: dict[str, type[RoutingTransformerLM | RoutingTransformerEncDec]] = {
    "routing_lm": RoutingTransformerLM,
    "routing_encdec": RoutingTransformerEncDec,
}


def build(flags: Mapping[str, Any]) -> Any:
    """Build a model from flat flags.

    Args:
        flags: `model`, and the flags of that kind of model. "decoder" (the default), "encoder" and
            "prefix_decoder" build a TransformerWrapper with `num_tokens`, `max_seq_len`, `dim`, `depth` and
            any flag of `docs/flags.md`; "xtransformer" an XTransformer with `dim` and the same flags after
            `enc_` and `dec_`; "memformer" a Memformer with these and `num_memory_slots`; "vit" a
            ViTransformerWrapper with `image_size`, `patch_size` and the flags of its layers; "classifier" a
            SequenceClassifier with `num_classes` and the flags of an encoder; "continuous" a
            ContinuousTransformerWrapper with `dim_in`, `dim_out`, `causal` and the flags of a decoder;
            "routing_lm" a RoutingTransformerLM and "routing_encdec" a RoutingTransformerEncDec, with their
            arguments.

    Raises:
        FlagError: lists every mistake.
    """
    if foreign := recognise(flags):
        text = f"these settings are {foreign.what}, not flags of this library; {foreign.advice}"
        raise FlagError([Finding("model", text)])
    kind = flags.get("model", "decoder")
    kinds = (*MODELS, *WHOLE, *ROUTING)
    if kind not in kinds:
        known = ", ".join(f"'{name}'" for name in kinds)
        text = f"`model` must be one of {known}, but is {kind!r}{nearest(str(kind), kinds)}"
        raise FlagError([Finding("model", text)])

    def make() -> Any:
        model: type[Any] = {**WHOLE, **ROUTING}.get(kind, TransformerWrapper)
        return model.from_flags(flags)

    return within_memory(flags, make, make)


def check(flags: Mapping[str, Any]) -> None:
    """Raise the errors of `build`, without allocating parameters."""
    with torch.device("meta"):
        build(flags)


def load(directory: str | Path, *, allow: Sequence[str] = ()) -> nn.Module:
    """Load a model that `model.save(directory)` wrote. No code in the files is executed.

    Args:
        allow: modules or packages from which the flags may name classes by import path
            (`norm: "mylab.norms:MyNorm"`); they are imported, which executes them.

    Raises:
        ValueError: for a directory of something else, damaged files, and a module that `allow` does not list.
    """
    with allowed_modules(allow):
        return load_model(Path(directory), build)


__all__ = ["LAYER_SCOPES", "MODELS", "ROUTING", "WHOLE", "build", "check", "load"]
