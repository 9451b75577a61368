"""Conversion of a stack of x-transformers: sublayers, residual, position bias and rotation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.attention import Attention
from flagformer.interop.heads import check_scores
from flagformer.interop.source import ConvertedWeights, SourceWeights
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


def convert_layers(source: SourceWeights, converted: ConvertedWeights, layers: Any) -> None:
    """Convert a stack, from the keys of an AttentionLayers of x-transformers."""
    offset = source.dialect.offset
    for index, sublayer in enumerate(layers.sublayers):
        for position, norm in enumerate((sublayer.in_norm, sublayer.branch_norm, sublayer.out_norm)):
            convert_norm(source, converted, f"layers.{index}.0.{position}", norm, offset)
        prefix = convert_branch(source, converted, f"layers.{index}.1", sublayer)
        if isinstance(sublayer.fn, Attention):
            convert_attention(source, converted, prefix, sublayer.fn)
            biased = sublayer.kind == "a" and not isinstance(layers.position_bias, NoPositionBias)
            check_scores(source, prefix, sublayer.fn, biased)
        else:
            convert_feedforward(source, converted, prefix, sublayer.fn)
        _convert_residual(source, converted, f"layers.{index}.2", layers.residual, index)
    convert_norm(source, converted, "final_norm", layers.final_norm, offset)
    _convert_bias(source, converted, layers)
    _check_rotation(source, layers.rotation)


def _convert_residual(
    source: SourceWeights, converted: ConvertedWeights, prefix: str, residual: nn.Module, index: int
) -> None:
    if isinstance(residual, Scaled):
        converted.put_row(residual.weight, index, source.take(f"{prefix}.residual_scale"))
    elif isinstance(residual, GRUGate):
        linear: Any
        for linear, name in ((residual.of_out[index], "ih"), (residual.of_stream[index], "hh")):
            converted.put(linear.weight, source.take(f"{prefix}.gru.weight_{name}"))
            converted.put(linear.bias, source.take(f"{prefix}.gru.bias_{name}"))


def _bias_heads(source: SourceWeights, layers: Any) -> Tensor:
    """Return the order of heads of a position bias, which all self-attention shares."""
    heads = torch.arange(layers.dims.heads)
    orders = [head_order(s.fn) for s in layers.sublayers if s.kind == "a"]
    found = [heads if order is None else order for order in orders] or [heads]
    if any(not torch.equal(order, found[0]) for order in found):
        source.refuse(
            "`attn_kv_heads` differs between layers, which share one position bias with one order of heads"
        )
    return found[0]


def _convert_bias(source: SourceWeights, converted: ConvertedWeights, layers: Any) -> None:
    bias, prefix = layers.position_bias, "rel_pos"
    if isinstance(bias, ALiBi):
        if not torch.equal(_bias_heads(source, layers), torch.arange(layers.dims.heads)):
            source.refuse(
                "`attn_kv_heads` with ALiBi: the order of heads and slopes differs between the libraries"
            )
    elif isinstance(bias, T5):
        table = source.take(f"{prefix}.relative_attention_bias.weight")
        converted.put(bias.table, None if table is None else table[:, _bias_heads(source, layers)])
    elif isinstance(bias, Dynamic):
        _convert_dynamic(source, converted, bias, _bias_heads(source, layers))


def _convert_dynamic(source: SourceWeights, converted: ConvertedWeights, bias: Any, heads: Tensor) -> None:
    for index, (linear, norm, _) in enumerate(bias.hidden):
        prefix = f"rel_pos.mlp.{index}"
        converted.put(linear.weight, source.take(f"{prefix}.0.weight"))
        converted.put(linear.bias, source.take(f"{prefix}.0.bias"))
        convert_norm(source, converted, f"{prefix}.1", norm)
    for name in ("weight", "bias"):
        value = source.take(f"rel_pos.mlp.{len(bias.hidden)}.{name}")
        converted.put(getattr(bias.out, name), None if value is None else value[heads])


def _check_rotation(source: SourceWeights, rotation: nn.Module) -> None:
    """Check the frequencies, which show the number of rotated dimensions and the base."""
    if isinstance(rotation, XPos):
        source.peek("rotary_pos_emb.scale")  # a constant
    rotary = rotary_of(rotation)
    if rotary is None:
        return
    theirs = source.take("rotary_pos_emb.inv_freq")
    if theirs is None:
        return
    rates = torch.tensor(rotary.frequencies.numbers[rotary.width // 2 :], dtype=torch.float32)
    ours = rates / rates[0]  # without the interpolation
    if len(theirs) != len(ours):
        text = f"these weights rotate {2 * len(theirs)} dimensions of a head, this model {2 * len(ours)}"
        source.refuse(f"{text}: set `rotary_emb_dim`")
    elif not torch.allclose(theirs.float().to(ours.device), ours, rtol=1e-4):
        source.refuse("these weights have other rotary frequencies: set their `rotary_base_rescale_factor`")
