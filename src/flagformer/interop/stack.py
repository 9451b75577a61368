"""Conversion of a stack of x-transformers: sublayers, residual, position bias and rotation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.attention import Attention
from flagformer.interop.conversion import Conversion
from flagformer.interop.heads import check_scores
from flagformer.interop.sublayers import (
    convert_attention,
    convert_branch,
    convert_feedforward,
    convert_norm,
    head_order,
    rotary_of,
)
from flagformer.position.alibi import ALiBi
from flagformer.position.dynamic import Dynamic
from flagformer.position.none import NoPositionBias
from flagformer.position.t5 import T5
from flagformer.position.xpos import XPos
from flagformer.residual.additive import Scaled
from flagformer.residual.gru import GRUGate


def convert_layers(weights: Conversion, layers: Any) -> None:
    """Convert a stack, from the keys of an AttentionLayers of x-transformers."""
    offset = weights.dialect.offset
    for index, sublayer in enumerate(layers.sublayers):
        for position, norm in enumerate((sublayer.in_norm, sublayer.branch_norm, sublayer.out_norm)):
            convert_norm(weights, f"layers.{index}.0.{position}", norm, offset)
        prefix = convert_branch(weights, f"layers.{index}.1", sublayer)
        if isinstance(sublayer.fn, Attention):
            convert_attention(weights, prefix, sublayer.fn)
            biased = sublayer.kind == "a" and not isinstance(layers.position_bias, NoPositionBias)
            check_scores(weights, prefix, sublayer.fn, biased)
        else:
            convert_feedforward(weights, prefix, sublayer.fn)
        _convert_residual(weights, f"layers.{index}.2", layers.residual, index)
    convert_norm(weights, "final_norm", layers.final_norm, offset)
    _convert_bias(weights, layers)
    for rotation in layers.rotations:
        _check_rotation(weights, rotation)


def _convert_residual(weights: Conversion, prefix: str, residual: nn.Module, index: int) -> None:
    if isinstance(residual, Scaled):
        weights.copy_row(residual.weight, index, f"{prefix}.residual_scale")
    elif isinstance(residual, GRUGate):
        linear: Any
        for linear, name in ((residual.of_out[index], "ih"), (residual.of_stream[index], "hh")):
            weights.copy(linear.weight, f"{prefix}.gru.weight_{name}")
            weights.copy(linear.bias, f"{prefix}.gru.bias_{name}")


def _bias_heads(weights: Conversion, layers: Any) -> Tensor:
    """Return the order of heads of a position bias, which all self-attention shares."""
    heads = torch.arange(layers.dims.heads)
    orders = [head_order(s.fn) for s in layers.sublayers if s.kind == "a"]
    found = [heads if order is None else order for order in orders] or [heads]
    if any(not torch.equal(order, found[0]) for order in found):
        weights.refuse(
            "`attn_kv_heads` differs between layers, which share one position bias with one order of heads"
        )
    return found[0]


def _convert_bias(weights: Conversion, layers: Any) -> None:
    bias = layers.position_bias
    if isinstance(bias, ALiBi):
        if not torch.equal(_bias_heads(weights, layers), torch.arange(layers.dims.heads)):
            weights.refuse(
                "`attn_kv_heads` with ALiBi: the order of heads and slopes differs between the libraries"
            )
    elif isinstance(bias, T5):
        heads = _bias_heads(weights, layers)
        weights.copy(bias.table, "rel_pos.relative_attention_bias.weight", lambda table: table[:, heads])
    elif isinstance(bias, Dynamic):
        _convert_dynamic(weights, bias, _bias_heads(weights, layers))


def _convert_dynamic(weights: Conversion, bias: Any, heads: Tensor) -> None:
    for index, (linear, norm, _) in enumerate(bias.hidden):
        prefix = f"rel_pos.mlp.{index}"
        weights.copy_module(linear, f"{prefix}.0")
        convert_norm(weights, f"{prefix}.1", norm)
    weights.copy_module(bias.out, f"rel_pos.mlp.{len(bias.hidden)}", lambda value: value[heads])


def _check_rotation(weights: Conversion, rotation: nn.Module) -> None:
    """Check the frequencies, which show the number of rotated dimensions and the base."""
    if isinstance(rotation, XPos):
        weights.peek("rotary_pos_emb.scale")  # a constant
    rotary = rotary_of(rotation)
    if rotary is None:
        return
    theirs = weights.take("rotary_pos_emb.inv_freq")
    if theirs is None:
        return
    rates = torch.tensor(rotary.frequencies.numbers[rotary.width // 2 :], dtype=torch.float32)
    ours = rates / rates[0]  # without the interpolation
    if len(theirs) != len(ours):
        text = f"these weights rotate {2 * len(theirs)} dimensions of a head, this model {2 * len(ours)}"
        weights.refuse(f"{text}: set `rotary_emb_dim`")
    elif not torch.allclose(theirs.float().to(ours.device), ours, rtol=1e-4):
        weights.refuse("these weights have other rotary frequencies: set their `rotary_base_rescale_factor`")
