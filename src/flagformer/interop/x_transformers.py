"""Weights of x-transformers 1.27 and 2.31, carried into a model of this library.

The libraries order some things differently: neighbouring against half-split rotated pairs, interleaved
against consecutive grouped heads, three projections against a fused one, gains stored minus one, learned
positions that are scaled at use. All of that is a permutation or a factor, and is undone here. What is not is
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flagformer.interop.dialect import Dialect, check_version, version_of
from flagformer.interop.flag_translator import flags_of_x_transformers
from flagformer.interop.source import ConvertedWeights, SourceWeights
from flagformer.interop.stack import convert_layers
from flagformer.interop.wrappers import (
    convert_encoder_decoder,
    convert_transformer,
    convert_vision,
    without_net,
)
from flagformer.stack.layers import AttentionLayers
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.build import build
from flagformer.wrappers.transformer import TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer

Weights = Mapping[str, Tensor] | nn.Module
# What carries each kind of model.
KINDS: dict[type[nn.Module], Any] = {
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
    """A model of this library with the weights of x-transformers 1.27 or 2.31: equal logits and gradients.

    Args:
        weights: a model of x-transformers (TransformerWrapper, XTransformer, ViTransformerWrapper,
            AutoregressiveWrapper, AttentionLayers and its kinds), or its `state_dict()`.
        model: the model to write, of the same class and built with the same flags. Where the two libraries
            start from other values, say them: x-transformers rotates half of each head (`rotary_emb_dim`)
            and keeps learned positions beside ALiBi and dynamic biases (`use_abs_pos_emb`). Its `ff_no_bias`
            beside `ff_glu` keeps one bias: build without `ff_no_bias`, other biases are then zeros.
        flags: in place of `model`: the arguments that x-transformers was built with, in one dictionary, those
            of the wrapper beside those of its layers, and `model` as for `flagformer.build`. What they mean
            there is translated (see `flags_of_x_transformers`).
        version: "1.27" or "2.31"; None: what the weights show.
        norm_add_unit_offset: 2.31 only, as the weights were trained; the default of x-transformers. Said by
            `flags` where they hold it.

    Returns:
        `model`, or the new one in eval mode. The encoder's logits projection that 1.27 keeps in an
        XTransformer is left out with a warning: nothing reads it there.

    Raises:
        ValueError: naming every weight that has no place here, every parameter that gets none and everything
            that is another function there; the model is then unchanged. Flags without weights (the
            activation, the scale of `attn_qk_norm`, ALiBi's number of heads, interpolation) leave no trace
            in weights: with `model` they are not checked, with `flags` they are those of the new model.
        FlagError: for `flags` that have no counterpart here.
    """
    if (model is None) == (flags is None):
        raise ValueError("give either `model`, to be written, or `flags`, of which one is built")
    check_version(version)
    version = version or version_of(weights)
    if model is None:
        model = build(flags_of_x_transformers(flags or {}, version)).eval()
    convert_x_transformers(weights, model, Dialect(version, norm_add_unit_offset, flags)).write()
    return model


def convert_x_transformers(weights: Weights, model: nn.Module, dialect: Dialect) -> ConvertedWeights:
    """Which tensor belongs to which parameter, each a differentiable function of the weights; writes nothing.

    Raises:
        ValueError: as `load_x_transformers`.
    """
    inner = model.net if isinstance(model, AutoregressiveWrapper) else model
    kinds = [kind for kind in KINDS if isinstance(inner, kind)]
    if not kinds:
        known = ", ".join(kind.__name__ for kind in KINDS)
        raise ValueError(f"`model` must be one of {known}, but is {type(model).__name__}")
    tensors = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    source, carried = SourceWeights(without_net(tensors), dialect), ConvertedWeights(inner)
    KINDS[kinds[0]](source, carried, inner)
    reasons = source.refused + [f"`{key}` has no place in this model" for key in source.rest()]
    reasons += carried.problems()
    if reasons:
        lines = "\n".join(f"  {reason}" for reason in dict.fromkeys(reasons))
        text = "these x-transformers weights do not fit this model; build it with the same flags"
        raise ValueError(f"{text}\n{lines}")
    return carried
