"""The sublayers of x-transformers: attention, feedforward, norms and what scales a branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.attention import Attention
from flagformer.attention.output.project import AttentionOnAttention
from flagformer.attention.prefix_kv.learned import LearnedMemory
from flagformer.attention.qk_norm.norms import Gain, L2QKNorm, RMSQKNorm
from flagformer.attention.source import CrossAttentionInputs
from flagformer.branch.scale import HalfStep, LayerScale
from flagformer.feedforward.dense import GLU
from flagformer.feedforward.dense import Gain as InnerGain
from flagformer.input_mixer.token_shift import TokenShift
from flagformer.interop.dialect import OLD
from flagformer.interop.heads import convert_gates, convert_scores
from flagformer.interop.permute import columns_by_head, grouped_heads, half_split, per_head, rows_by_head
from flagformer.interop.source import ConvertedWeights, SourceWeights
from flagformer.norm import Norm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.norm.simple_rmsnorm import SimpleRMSNorm
from flagformer.position.rotary import Rotary
from flagformer.position.xpos import XPos


def convert_norm(
    source: SourceWeights, carried: ConvertedWeights, prefix: str, norm: object, offset: float = 0.0
) -> None:
    """The gain of a norm; `offset` is what x-transformers adds to what is stored."""
    if not isinstance(norm, Norm) or isinstance(norm, SimpleRMSNorm):
        return
    if isinstance(norm, RMSNorm | ScaleNorm):
        gain = source.take(f"{prefix}.g")
    else:
        gain = _layer_norm_gain(source, prefix)
    factor = 1.0
    if isinstance(norm, ScaleNorm) and not source.dialect.whole_lengths:
        factor = norm.width**0.5
    carried.put(norm.weight, None if gain is None else (gain + offset) * factor)


def _layer_norm_gain(source: SourceWeights, prefix: str) -> Tensor | None:
    """`gamma` in 2.31 and under an old torch, `weight` in 1.27; a bias only where it is zero."""
    for name in ("beta", "bias"):
        extra = source.peek(f"{prefix}.{name}")
        if extra is not None and extra.count_nonzero():
            source.refuse("is not zero, and norms have no bias in this library", f"{prefix}.{name}")
    plain = source.peek(f"{prefix}.weight")
    return source.take(f"{prefix}.gamma") if plain is None else plain


def convert_branch(source: SourceWeights, carried: ConvertedWeights, prefix: str, sublayer: Any) -> str:
    """Takes LayerScale; returns the prefix of the sublayer's function, which it and macaron wrap."""
    branch = sublayer.branch
    parts = list(branch) if isinstance(branch, nn.Sequential) else [branch]
    for part in reversed(parts):
        if isinstance(part, LayerScale):
            gain = source.take(f"{prefix}.gamma")
            carried.put(part.weight, None if gain is None else gain + source.dialect.offset)
            prefix += ".fn"
        elif isinstance(part, HalfStep):
            prefix += ".fn"
        if isinstance(part, LayerScale | HalfStep) and isinstance(sublayer.branch_norm, Norm):
            source.refuse(
                "x-transformers scales a branch before the sandwich norm, this library behind it", prefix
            )
    return prefix + ".fn" if isinstance(sublayer.input_mixer, TokenShift) else prefix


def convert_feedforward(source: SourceWeights, carried: ConvertedWeights, prefix: str, fn: Any) -> None:
    gated = isinstance(fn, GLU)
    first = f"{prefix}.ff.0.proj" if gated else f"{prefix}.ff.0.0"
    norm, last = fn.norm, fn.w_out
    carried.put(fn.w_in.weight, source.take(f"{first}.weight"))
    bias = source.peek(f"{first}.bias")
    if fn.w_in.bias is not None:
        carried.put(fn.w_in.bias, bias)
    elif bias is not None and bias.count_nonzero():
        source.refuse(
            "is not zero: x-transformers keeps this bias under `ff_no_bias`; build this model without that",
            f"{first}.bias",
        )
    if gated and isinstance(fn.gain, InnerGain):
        carried.put(fn.gain.weight, source.take(f"{prefix}.ff.0.mult_bias"))
    convert_norm(source, carried, f"{prefix}.ff.1", norm)
    out = f"{prefix}.ff.{3 if isinstance(norm, Norm) else 2}"
    carried.put(last.weight, source.take(f"{out}.weight"))
    if last.bias is not None:
        out_bias = source.peek(f"{out}.bias")
        if out_bias is None and gated and bias is not None:
            out_bias = torch.zeros_like(last.bias)  # its `ff_no_bias` beside a gate, said without the flag
        carried.put(last.bias, out_bias)


def head_order(fn: Attention) -> Tensor | None:
    """The permutation of query heads, None where the orders agree."""
    projection: Any = fn.source.projection
    if projection.groups in (1, projection.heads):
        return None
    return grouped_heads(projection.heads, projection.groups)


def convert_attention(source: SourceWeights, carried: ConvertedWeights, prefix: str, fn: Attention) -> None:
    """Queries, keys and values (one weight here), their norms, memory, and the output projection."""
    projection: Any = fn.source.projection
    last = fn.to_out.last
    heads, width = head_order(fn), projection.width
    rotation = rotary_of(getattr(fn.source, "rotation", None))
    neighbours = rotation is not None and source.dialect.turns_neighbours
    dims = half_split(width, rotation.width) if rotation and neighbours else None
    q, k = (source.take(f"{prefix}.to_{name}.weight") for name in "qk")
    if q is not None and k is not None:
        parts = [rows_by_head(q, width, heads, dims), rows_by_head(k, width, None, dims)]
        if sum(len(part) for part in parts) != _rows(projection):  # else keys are the values
            v = source.take(f"{prefix}.to_v.weight")
            parts += [] if v is None else [v]
        _carry_projection(carried, projection, parts)
    _carry_qk_norm(source, carried, prefix, fn, heads, dims)
    for seats in fn.prefix_kv:
        if isinstance(seats, LearnedMemory):
            _carry_memory(source, carried, prefix, fn, seats, dims)
    convert_scores(source, carried, prefix, fn, heads)
    convert_gates(source, carried, prefix, fn, heads)
    gated = isinstance(fn.to_out, AttentionOnAttention)
    out = source.peek(f"{prefix}.to_out.0.weight" if gated else f"{prefix}.to_out.weight")
    if out is None and projection.heads == 1:
        out = torch.eye(last.in_features)  # one head is not projected there
    elif out is not None and heads is not None:
        out = columns_by_head(out, last.in_features // projection.heads, heads)
    carried.put(last.weight, out)


def rotary_of(rotation: object) -> Rotary | None:
    """What turns, alone or inside xPos."""
    inner = rotation.rotary if isinstance(rotation, XPos) else rotation
    return inner if isinstance(inner, Rotary) else None


def _rows(projection: Any) -> int:
    """Rows of queries, keys and, where they have a projection of their own, values."""
    parts = ("to_qkv",) if hasattr(projection, "to_qkv") else ("to_q", "to_kv")
    return sum(getattr(projection, part).out_features for part in parts)


def _carry_projection(carried: ConvertedWeights, projection: Any, parts: list[Tensor]) -> None:
    """Queries, keys and values, each [heads * width, D]."""
    if hasattr(projection, "to_qkv"):
        carried.put(projection.to_qkv.weight, torch.cat(parts))
        return
    carried.put(projection.to_q.weight, parts[0])
    carried.put(projection.to_kv.weight, torch.cat(parts[1:]))


def _carry_qk_norm(
    source: SourceWeights,
    carried: ConvertedWeights,
    prefix: str,
    fn: Attention,
    heads: Tensor | None,
    dims: Tensor | None,
) -> None:
    norm: Any = fn.source.qk_norm
    if isinstance(norm, L2QKNorm):
        _carry_cosine(source, carried, prefix, fn, heads, dims)
    if not isinstance(norm, RMSQKNorm):
        return
    for target, name, order in ((norm.q_weight, "q_rmsnorm", heads), (norm.k_weight, "k_rmsnorm", None)):
        gain = source.take(f"{prefix}.{name}.gamma")
        carried.put(target, None if gain is None else per_head(gain + 1, order, dims))


def _carry_cosine(
    source: SourceWeights,
    carried: ConvertedWeights,
    prefix: str,
    fn: Attention,
    heads: Tensor | None,
    dims: Tensor | None,
) -> None:
    norm: Any = fn.source.qk_norm
    cross = isinstance(fn.source, CrossAttentionInputs)
    if norm.groups > 1 and dims is not None:
        source.refuse("`attn_qk_norm_groups` with rotated heads: pairs stand in other parts of a head there")
    for gain, name, order in ((norm.q_gain, "q", heads), (norm.k_gain, "k", None)):
        if isinstance(gain, Gain):
            value = source.take(f"{prefix}.qk_norm_{name}_scale")
            factor = _cosine_share(source, f"{prefix}.qk_norm_{name}_scale", value, cross)
            carried.put(gain.weight, None if value is None else per_head(value * factor, order, dims))


def _cosine_share(source: SourceWeights, key: str, gain: Tensor | None, cross: bool) -> float:
    """What a gain takes over of the factor that 1.27 keeps beside it; in this library it is K ** -0.5."""
    if source.dialect.version != OLD or gain is None:
        return 1.0
    factor = source.dialect.cosine(cross)
    if factor is None:
        source.refuse("`attn_qk_norm_scale` multiplies it in 1.27 and leaves no weight: load by `flags`", key)
        return 1.0
    return factor**0.5 * gain.shape[-1] ** 0.25


def _carry_memory(
    source: SourceWeights,
    carried: ConvertedWeights,
    prefix: str,
    fn: Attention,
    seats: LearnedMemory,
    dims: Tensor | None,
) -> None:
    keys, values = source.take(f"{prefix}.mem_k"), source.take(f"{prefix}.mem_v")
    carried.put(seats.k, None if keys is None else per_head(keys, None, dims))
    carried.put(seats.v, values)
    norm = fn.source.qk_norm
    if isinstance(norm, RMSQKNorm):
        source.refuse(
            "x-transformers leaves memory keys as they are under `attn_qk_rmsnorm`", f"{prefix}.mem_k"
        )
    if isinstance(norm, L2QKNorm) and norm.groups > 1:
        source.refuse(
            "x-transformers norms memory keys whole under `attn_qk_norm_groups`, tokens' keys in parts",
            f"{prefix}.mem_k",
        )
