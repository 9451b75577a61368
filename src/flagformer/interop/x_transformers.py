"""Conversion of weights of x-transformers 1.27 and 2.31 to models of this library.

The libraries differ in the order of rotated pairs (interleaved or half-split) and of grouped heads
(interleaved or consecutive), in three projections or a fused one, in norm weights stored minus one, and in
learned positions that are scaled at use. These permutations and factors are converted. Other differences
raise an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flagformer.interop.conversion import Conversion
from flagformer.interop.dialect import Dialect, check_version, version_of
from flagformer.interop.flag_translator import flags_of_x_transformers
from flagformer.interop.stack import convert_layers
from flagformer.interop.wrappers import (
    convert_encoder_decoder,
    convert_transformer,
    convert_vision,
    without_net,
)
from flagformer.models.build import build
from flagformer.stack.layers import AttentionLayers
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.transformer import TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer

Weights = Mapping[str, Tensor] | nn.Module
# The conversion of each kind of model.
CONVERTERS: dict[type[nn.Module], Any] = {
    TransformerWrapper: convert_transformer,
    XTransformer: convert_encoder_decoder,
    ViTransformerWrapper: convert_vision,
    AttentionLayers: convert_layers,
}


def load_x_transformers(
    weights: Weights,
    model: nn.Module | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    version: str | None = None,
    norm_add_unit_offset: bool = True,
) -> Any:
    """Load weights of x-transformers 1.27 or 2.31 into a model with equal logits and gradients.

    Args:
        weights: a model of x-transformers (TransformerWrapper, XTransformer, ViTransformerWrapper,
            AutoregressiveWrapper, AttentionLayers and its subclasses), or its `state_dict()`.
        model: the model to load into, of the same class and built with the same flags. Set flags explicitly
            where the defaults differ: x-transformers rotates half of each head (`rotary_emb_dim`) and keeps
            learned positions with ALiBi and dynamic biases (`use_abs_pos_emb`). With `ff_no_bias` and
            `ff_glu` it keeps one bias: build without `ff_no_bias`, the other biases are then zeros.
        flags: in place of `model`: the arguments of the wrapper and the layers of x-transformers in one
            dictionary, and `model` as for `flagformer.build`. They are translated by
            `flags_of_x_transformers`.
        version: "1.27" or "2.31"; None: detected from the weights.
        norm_add_unit_offset: 2.31 only, as in training; the default is that of x-transformers. A value in
            `flags` takes precedence.

    Returns:
        `model`, or the new model in eval mode. The unused logits projection of the encoder in an XTransformer
        of 1.27 is dropped with a warning.

    Raises:
        ValueError: listing all weights and parameters without a counterpart, and all flags with a different
            function; the model is then unchanged. Settings that have no weights (the activation, the scale of
            `attn_qk_norm`, the number of ALiBi heads, interpolation) are not checked with `model`; with
            `flags` they are set in the new model.
        FlagError: for `flags` that have no counterpart in this library.
    """
    if (model is None) == (flags is None):
        raise ValueError("pass either `model`, to load into, or `flags`, to build a new model")
    check_version(version)
    version = version or version_of(weights)
    if model is None:
        model = build(flags_of_x_transformers(flags or {}, version)).eval()
    convert_x_transformers(weights, model, Dialect(version, norm_add_unit_offset, flags)).write()
    return model


def convert_x_transformers(weights: Weights, model: nn.Module, dialect: Dialect) -> Conversion:
    """Convert the weights without writing them; each value is a differentiable function of the weights.

    Raises:
        ValueError: as `load_x_transformers`.
    """
    inner = model.net if isinstance(model, AutoregressiveWrapper) else model
    kinds = [kind for kind in CONVERTERS if isinstance(inner, kind)]
    if not kinds:
        known = ", ".join(kind.__name__ for kind in CONVERTERS)
        raise ValueError(f"`model` must be one of {known}, but is {type(model).__name__}")
    tensors = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    conversion = Conversion(without_net(tensors), dialect, inner)
    CONVERTERS[kinds[0]](conversion, inner)
    if reasons := conversion.problems():
        lines = "\n".join(f"  {reason}" for reason in reasons)
        text = "these x-transformers weights do not fit this model; build it with the flags of the weights"
        raise ValueError(f"{text}\n{lines}")
    return conversion
