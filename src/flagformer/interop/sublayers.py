"""Conversion of the sublayers of x-transformers: attention, feedforward, norms and LayerScale."""

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
    source: SourceWeights, converted: ConvertedWeights, prefix: str, norm: object, offset: float = 0.0
) -> None:
    """Convert the weight of a norm; x-transformers adds `offset` to the stored weight."""
    if not isinstance(norm, Norm) or isinstance(norm, SimpleRMSNorm):
        return
    if isinstance(norm, RMSNorm | ScaleNorm):
        gain = source.take(f"{prefix}.g")
    else:
        gain = _layer_norm_weight(source, prefix)
    factor = 1.0
    if isinstance(norm, ScaleNorm) and not source.dialect.absolute_scale:
        factor = norm.dim**0.5
    converted.put(norm.weight, None if gain is None else (gain + offset) * factor)


def _layer_norm_weight(source: SourceWeights, prefix: str) -> Tensor | None:
    """Take the weight: `gamma` in 2.31 and with an old torch, `weight` in 1.27; a bias must be zero."""
    for name in ("beta", "bias"):
        extra = source.peek(f"{prefix}.{name}")
        if extra is not None and extra.count_nonzero():
            source.refuse("is not zero, but norms of this library have no bias", f"{prefix}.{name}")
    plain = source.peek(f"{prefix}.weight")
    return source.take(f"{prefix}.gamma") if plain is None else plain


def convert_branch(source: SourceWeights, converted: ConvertedWeights, prefix: str, sublayer: Any) -> str:
    """Convert LayerScale; return the prefix of the sublayer's function, which LayerScale and macaron wrap."""
    branch = sublayer.branch
    parts = list(branch) if isinstance(branch, nn.Sequential) else [branch]
    for part in reversed(parts):
        if isinstance(part, LayerScale):
            gain = source.take(f"{prefix}.gamma")
            converted.put(part.weight, None if gain is None else gain + source.dialect.offset)
            prefix += ".fn"
        elif isinstance(part, HalfStep):
            prefix += ".fn"
        if isinstance(part, LayerScale | HalfStep) and isinstance(sublayer.branch_norm, Norm):
            source.refuse(
                "x-transformers scales a sublayer's output before the sandwich norm, this library after it",
                prefix,
            )
    return prefix + ".fn" if isinstance(sublayer.input_mixer, TokenShift) else prefix


def convert_feedforward(source: SourceWeights, converted: ConvertedWeights, prefix: str, fn: Any) -> None:
    gated = isinstance(fn, GLU)
    first = f"{prefix}.ff.0.proj" if gated else f"{prefix}.ff.0.0"
    norm, last = fn.norm, fn.w_out
    converted.put(fn.w_in.weight, source.take(f"{first}.weight"))
    bias = source.peek(f"{first}.bias")
    if fn.w_in.bias is not None:
        converted.put(fn.w_in.bias, bias)
    elif bias is not None and bias.count_nonzero():
        source.refuse(
            "is not zero: x-transformers has this bias also with `ff_no_bias`; build the model without it",
            f"{first}.bias",
        )
    if gated and isinstance(fn.gain, InnerGain):
        converted.put(fn.gain.weight, source.take(f"{prefix}.ff.0.mult_bias"))
    convert_norm(source, converted, f"{prefix}.ff.1", norm)
    out = f"{prefix}.ff.{3 if isinstance(norm, Norm) else 2}"
    converted.put(last.weight, source.take(f"{out}.weight"))
    if last.bias is not None:
        out_bias = source.peek(f"{out}.bias")
        if out_bias is None and gated and bias is not None:
            out_bias = torch.zeros_like(
                last.bias
            )  # `ff_no_bias` with a gate, converted to a model with biases
        converted.put(last.bias, out_bias)


def head_order(fn: Attention) -> Tensor | None:
    """Return the permutation of query heads; None if the orders agree."""
    projection: Any = fn.source.projection
    if projection.groups in (1, projection.heads):
        return None
    return grouped_heads(projection.heads, projection.groups)


def convert_attention(source: SourceWeights, converted: ConvertedWeights, prefix: str, fn: Attention) -> None:
    """Convert projections (q, k, v are one weight here), QK norms, memory, and the output projection."""
    projection: Any = fn.source.projection
    last = fn.to_out.last
    heads, width = head_order(fn), projection.width
    rotation = rotary_of(getattr(fn.source, "rotation", None))
    interleaved = rotation is not None and source.dialect.interleaved_rotation
    dims = half_split(width, rotation.width) if rotation and interleaved else None
    q, k = (source.take(f"{prefix}.to_{name}.weight") for name in "qk")
    if q is not None and k is not None:
        parts = [rows_by_head(q, width, heads, dims), rows_by_head(k, width, None, dims)]
        if sum(len(part) for part in parts) != _rows(projection):  # otherwise keys are shared as values
            v = source.take(f"{prefix}.to_v.weight")
            parts += [] if v is None else [v]
        _convert_projection(converted, projection, parts)
    _convert_qk_norm(source, converted, prefix, fn, heads, dims)
    for prefix_kv in fn.prefix_kv:
        if isinstance(prefix_kv, LearnedMemory):
            _convert_memory(source, converted, prefix, fn, prefix_kv, dims)
    convert_scores(source, converted, prefix, fn, heads)
    convert_gates(source, converted, prefix, fn, heads)
    gated = isinstance(fn.to_out, AttentionOnAttention)
    out = source.peek(f"{prefix}.to_out.0.weight" if gated else f"{prefix}.to_out.weight")
    if out is None and projection.heads == 1:
        out = torch.eye(last.in_features)  # x-transformers has no output projection for one head
    elif out is not None and heads is not None:
        out = columns_by_head(out, last.in_features // projection.heads, heads)
    converted.put(last.weight, out)


def rotary_of(rotation: object) -> Rotary | None:
    """Return the rotary embedding, also that of xPos; None for other rotations."""
    inner = rotation.rotary if isinstance(rotation, XPos) else rotation
    return inner if isinstance(inner, Rotary) else None


def _rows(projection: Any) -> int:
    """Return the number of rows of all projections, of values only if they have one."""
    parts = ("to_qkv",) if hasattr(projection, "to_qkv") else ("to_q", "to_kv")
    return sum(getattr(projection, part).out_features for part in parts)


def _convert_projection(converted: ConvertedWeights, projection: Any, parts: list[Tensor]) -> None:
    """Convert queries, keys and values, each [heads * width, D]."""
    if hasattr(projection, "to_qkv"):
        converted.put(projection.to_qkv.weight, torch.cat(parts))
        return
    converted.put(projection.to_q.weight, parts[0])
    converted.put(projection.to_kv.weight, torch.cat(parts[1:]))


def _convert_qk_norm(
    source: SourceWeights,
    converted: ConvertedWeights,
    prefix: str,
    fn: Attention,
    heads: Tensor | None,
    dims: Tensor | None,
) -> None:
    norm: Any = fn.source.qk_norm
    if isinstance(norm, L2QKNorm):
        _convert_cosine(source, converted, prefix, fn, heads, dims)
    if not isinstance(norm, RMSQKNorm):
        return
    for target, name, order in ((norm.q_weight, "q_rmsnorm", heads), (norm.k_weight, "k_rmsnorm", None)):
        gain = source.take(f"{prefix}.{name}.gamma")
        converted.put(target, None if gain is None else per_head(gain + 1, order, dims))


def _convert_cosine(
    source: SourceWeights,
    converted: ConvertedWeights,
    prefix: str,
    fn: Attention,
    heads: Tensor | None,
    dims: Tensor | None,
) -> None:
    norm: Any = fn.source.qk_norm
    cross = isinstance(fn.source, CrossAttentionInputs)
    if norm.groups > 1 and dims is not None:
        source.refuse(
            "`attn_qk_norm_groups` with rotation: rotated pairs are in other groups in x-transformers"
        )
    for gain, name, order in ((norm.q_gain, "q", heads), (norm.k_gain, "k", None)):
        if isinstance(gain, Gain):
            value = source.take(f"{prefix}.qk_norm_{name}_scale")
            factor = _cosine_share(source, f"{prefix}.qk_norm_{name}_scale", value, cross)
            converted.put(gain.weight, None if value is None else per_head(value * factor, order, dims))


def _cosine_share(source: SourceWeights, key: str, gain: Tensor | None, cross: bool) -> float:
    """Return the factor of a learned scale: 1.27 applies a fixed scale too, this library K ** -0.5."""
    if source.dialect.version != OLD or gain is None:
        return 1.0
    factor = source.dialect.cosine(cross)
    if factor is None:
        source.refuse(
            "`attn_qk_norm_scale` multiplies it in 1.27 and is not in the weights: load with `flags`", key
        )
        return 1.0
    return factor**0.5 * gain.shape[-1] ** 0.25


def _convert_memory(
    source: SourceWeights,
    converted: ConvertedWeights,
    prefix: str,
    fn: Attention,
    memory: LearnedMemory,
    dims: Tensor | None,
) -> None:
    keys, values = source.take(f"{prefix}.mem_k"), source.take(f"{prefix}.mem_v")
    converted.put(memory.k, None if keys is None else per_head(keys, None, dims))
    converted.put(memory.v, values)
    norm = fn.source.qk_norm
    if isinstance(norm, RMSQKNorm):
        source.refuse(
            "x-transformers does not normalize memory keys with `attn_qk_rmsnorm`", f"{prefix}.mem_k"
        )
    if isinstance(norm, L2QKNorm) and norm.groups > 1:
        source.refuse(
            "x-transformers does not group memory keys with `attn_qk_norm_groups`, only the keys of tokens",
            f"{prefix}.mem_k",
        )
