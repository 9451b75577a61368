"""A stack of x-transformers: its sublayers, its residual, its position bias, its rotation."""

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


def convert_layers(source: SourceWeights, carried: ConvertedWeights, layers: Any) -> None:
    """A stack; keys as an AttentionLayers of x-transformers has them."""
    offset = source.dialect.offset
    for index, sublayer in enumerate(layers.sublayers):
        for place, norm in enumerate((sublayer.in_norm, sublayer.branch_norm, sublayer.out_norm)):
            convert_norm(source, carried, f"layers.{index}.0.{place}", norm, offset)
        prefix = convert_branch(source, carried, f"layers.{index}.1", sublayer)
        if isinstance(sublayer.fn, Attention):
            convert_attention(source, carried, prefix, sublayer.fn)
            biased = sublayer.kind == "a" and not isinstance(layers.position_bias, NoPositionBias)
            check_scores(source, prefix, sublayer.fn, biased)
        else:
            convert_feedforward(source, carried, prefix, sublayer.fn)
        _carry_residual(source, carried, f"layers.{index}.2", layers.residual, index)
    convert_norm(source, carried, "final_norm", layers.final_norm, offset)
    _carry_bias(source, carried, layers)
    _check_rotation(source, layers.rotation)


def _carry_residual(
    source: SourceWeights, carried: ConvertedWeights, prefix: str, residual: nn.Module, index: int
) -> None:
    if isinstance(residual, Scaled):
        carried.put_row(residual.weight, index, source.take(f"{prefix}.residual_scale"))
    elif isinstance(residual, GRUGate):
        linear: Any
        for linear, name in ((residual.of_out[index], "ih"), (residual.of_stream[index], "hh")):
            carried.put(linear.weight, source.take(f"{prefix}.gru.weight_{name}"))
            carried.put(linear.bias, source.take(f"{prefix}.gru.bias_{name}"))


def _bias_heads(source: SourceWeights, layers: Any) -> Tensor:
    """The order of heads in a bias that all self-attention shares."""
    heads = torch.arange(layers.dims.heads)
    orders = [head_order(s.fn) for s in layers.sublayers if s.kind == "a"]
    found = [heads if order is None else order for order in orders] or [heads]
    if any(not torch.equal(order, found[0]) for order in found):
        source.refuse(
            "`attn_kv_heads` differs between layers, which share one position bias with its own heads"
        )
    return found[0]


def _carry_bias(source: SourceWeights, carried: ConvertedWeights, layers: Any) -> None:
    bias, prefix = layers.position_bias, "rel_pos"
    if isinstance(bias, ALiBi):
        if not torch.equal(_bias_heads(source, layers), torch.arange(layers.dims.heads)):
            source.refuse(
                "`attn_kv_heads` with ALiBi: slopes belong to heads, which grouping orders differently"
            )
    elif isinstance(bias, T5):
        table = source.take(f"{prefix}.relative_attention_bias.weight")
        carried.put(bias.table, None if table is None else table[:, _bias_heads(source, layers)])
    elif isinstance(bias, Dynamic):
        _carry_dynamic(source, carried, bias, _bias_heads(source, layers))


def _carry_dynamic(source: SourceWeights, carried: ConvertedWeights, bias: Any, heads: Tensor) -> None:
    for index, (linear, norm, _) in enumerate(bias.hidden):
        prefix = f"rel_pos.mlp.{index}"
        carried.put(linear.weight, source.take(f"{prefix}.0.weight"))
        carried.put(linear.bias, source.take(f"{prefix}.0.bias"))
        convert_norm(source, carried, f"{prefix}.1", norm)
    for name in ("weight", "bias"):
        value = source.take(f"rel_pos.mlp.{len(bias.hidden)}.{name}")
        carried.put(getattr(bias.out, name), None if value is None else value[heads])


def _check_rotation(source: SourceWeights, rotation: nn.Module) -> None:
    """Frequencies are not learned, but tell how many dimensions were turned, and by which base."""
    if isinstance(rotation, XPos):
        source.peek("rotary_pos_emb.scale")  # a constant
    turning = rotary_of(rotation)
    if turning is None:
        return
    theirs = source.take("rotary_pos_emb.inv_freq")
    if theirs is None:
        return
    rates = torch.tensor(turning.frequencies.numbers[turning.width // 2 :], dtype=torch.float32)
    ours = rates / rates[0]  # without the interpolation
    if len(theirs) != len(ours):
        turned = f"these weights turn {2 * len(theirs)} dims of a head, this model {2 * len(ours)}"
        source.refuse(f"{turned}: set `rotary_emb_dim`")
    elif not torch.allclose(theirs.float().to(ours.device), ours, rtol=1e-4):
        source.refuse("these weights turn by other frequencies: set `rotary_base_rescale_factor` as theirs")
