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
from flagformer.interop.conversion import Conversion
from flagformer.interop.dialect import OLD
from flagformer.interop.heads import convert_gates, convert_scores
from flagformer.interop.permute import columns_by_head, grouped_heads, half_split, per_head, rows_by_head
from flagformer.norm import Norm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.norm.simple_rmsnorm import SimpleRMSNorm
from flagformer.position.rotary import Rotary
from flagformer.position.xpos import XPos


def convert_norm(weights: Conversion, prefix: str, norm: object, offset: float = 0.0) -> None:
    """Convert the weight of a norm; x-transformers adds `offset` to the stored weight."""
    if not isinstance(norm, Norm) or isinstance(norm, SimpleRMSNorm):
        return
    if isinstance(norm, RMSNorm | ScaleNorm):
        gain = weights.take(f"{prefix}.g")
    else:
        gain = _layer_norm_weight(weights, prefix)
    factor = 1.0
    if isinstance(norm, ScaleNorm) and not weights.dialect.absolute_scale:
        factor = norm.dim**0.5
    weights.put(norm.weight, None if gain is None else (gain + offset) * factor)


def _layer_norm_weight(weights: Conversion, prefix: str) -> Tensor | None:
    """Take the weight: `gamma` in 2.31 and with an old torch, `weight` in 1.27; a bias must be zero."""
    for name in ("beta", "bias"):
        extra = weights.peek(f"{prefix}.{name}")
        if extra is not None and extra.count_nonzero():
            weights.refuse("is not zero, but norms of this library have no bias", f"{prefix}.{name}")
    plain = weights.peek(f"{prefix}.weight")
    return weights.take(f"{prefix}.gamma") if plain is None else plain


def convert_branch(weights: Conversion, prefix: str, sublayer: Any) -> str:
    """Convert LayerScale; return the prefix of the sublayer's function, which LayerScale and macaron wrap."""
    branch = sublayer.branch
    parts = list(branch) if isinstance(branch, nn.Sequential) else [branch]
    for part in reversed(parts):
        if isinstance(part, LayerScale):
            weights.copy(part.weight, f"{prefix}.gamma", lambda scale: scale + weights.dialect.offset)
            prefix += ".fn"
        elif isinstance(part, HalfStep):
            prefix += ".fn"
        if isinstance(part, LayerScale | HalfStep) and isinstance(sublayer.branch_norm, Norm):
            weights.refuse(
                "x-transformers scales a sublayer's output before the sandwich norm, this library after it",
                prefix,
            )
    return prefix + ".fn" if isinstance(sublayer.input_mixer, TokenShift) else prefix


def convert_feedforward(weights: Conversion, prefix: str, fn: Any) -> None:
    gated = isinstance(fn, GLU)
    first = f"{prefix}.ff.0.proj" if gated else f"{prefix}.ff.0.0"
    norm, last = fn.norm, fn.w_out
    weights.copy(fn.w_in.weight, f"{first}.weight")
    bias = weights.peek(f"{first}.bias")
    if fn.w_in.bias is not None:
        weights.put(fn.w_in.bias, bias)
    elif bias is not None and bias.count_nonzero():
        weights.refuse(
            "is not zero: x-transformers has this bias also with `ff_no_bias`; build the model without it",
            f"{first}.bias",
        )
    if gated and isinstance(fn.gain, InnerGain):
        weights.copy(fn.gain.weight, f"{prefix}.ff.0.mult_bias")
    convert_norm(weights, f"{prefix}.ff.1", norm)
    out = f"{prefix}.ff.{3 if isinstance(norm, Norm) else 2}"
    weights.copy(last.weight, f"{out}.weight")
    if last.bias is not None:
        out_bias = weights.peek(f"{out}.bias")
        if out_bias is None and gated and bias is not None:
            # `ff_no_bias` with a gate, converted to a model with biases
            out_bias = torch.zeros_like(last.bias)
        weights.put(last.bias, out_bias)


def head_order(fn: Attention) -> Tensor | None:
    """Return the permutation of query heads; None if the orders agree."""
    projection: Any = fn.source.projection
    if projection.groups in (1, projection.heads):
        return None
    return grouped_heads(projection.heads, projection.groups)


def convert_attention(weights: Conversion, prefix: str, fn: Attention) -> None:
    """Convert projections (q, k, v are one weight here), QK norms, memory, and the output projection."""
    projection: Any = fn.source.projection
    last = fn.to_out.last
    heads, width = head_order(fn), projection.width
    rotation = rotary_of(getattr(fn.source, "rotation", None))
    interleaved = rotation is not None and weights.dialect.interleaved_rotation
    dims = half_split(width, rotation.width) if rotation and interleaved else None
    q, k = (weights.take(f"{prefix}.to_{name}.weight") for name in "qk")
    if q is not None and k is not None:
        parts = [rows_by_head(q, width, heads, dims), rows_by_head(k, width, None, dims)]
        fused = hasattr(projection, "to_qkv")
        layers = [projection.to_qkv] if fused else [projection.to_q, projection.to_kv]
        if sum(map(len, parts)) != sum(layer.out_features for layer in layers):  # else values are keys
            v = weights.take(f"{prefix}.to_v.weight")
            parts += [] if v is None else [v]
        for layer, of_layer in zip(layers, [parts] if fused else [parts[:1], parts[1:]], strict=True):
            weights.put(layer.weight, torch.cat(of_layer))
    _convert_qk_norm(weights, prefix, fn, heads, dims)
    for prefix_kv in fn.prefix_kv:
        if isinstance(prefix_kv, LearnedMemory):
            _convert_memory(weights, prefix, fn, prefix_kv, dims)
    convert_scores(weights, prefix, fn, heads)
    convert_gates(weights, prefix, fn, heads)
    gated = isinstance(fn.to_out, AttentionOnAttention)
    out = weights.peek(f"{prefix}.to_out.0.weight" if gated else f"{prefix}.to_out.weight")
    if out is None and projection.heads == 1:
        out = torch.eye(last.in_features)  # x-transformers has no output projection for one head
    elif out is not None and heads is not None:
        out = columns_by_head(out, last.in_features // projection.heads, heads)
    weights.put(last.weight, out)


def rotary_of(rotation: object) -> Rotary | None:
    """Return the rotary embedding, also that of xPos; None for other rotations."""
    inner = rotation.rotary if isinstance(rotation, XPos) else rotation
    return inner if isinstance(inner, Rotary) else None


def _convert_qk_norm(
    weights: Conversion, prefix: str, fn: Attention, heads: Tensor | None, dims: Tensor | None
) -> None:
    norm: Any = fn.source.qk_norm
    if isinstance(norm, RMSQKNorm):
        for target, name, order in ((norm.q_weight, "q", heads), (norm.k_weight, "k", None)):
            scale = weights.take(f"{prefix}.{name}_rmsnorm.gamma")
            weights.put(target, None if scale is None else per_head(scale + 1, order, dims))
    if not isinstance(norm, L2QKNorm):
        return
    if norm.groups > 1 and dims is not None:
        weights.refuse(
            "`attn_qk_norm_groups` with rotation: rotated pairs are in other groups in x-transformers"
        )
    for gain, name, order in ((norm.q_gain, "q", heads), (norm.k_gain, "k", None)):
        if isinstance(gain, Gain):
            key = f"{prefix}.qk_norm_{name}_scale"
            scale = weights.take(key)
            factor = _cosine_share(weights, key, scale, isinstance(fn.source, CrossAttentionInputs))
            weights.put(gain.weight, None if scale is None else per_head(scale * factor, order, dims))


def _cosine_share(weights: Conversion, key: str, gain: Tensor | None, cross: bool) -> float:
    """Return the factor of a learned scale: 1.27 applies a fixed scale too, this library K ** -0.5."""
    if weights.dialect.version != OLD or gain is None:
        return 1.0
    factor = weights.dialect.cosine(cross)
    if factor is None:
        weights.refuse(
            "`attn_qk_norm_scale` multiplies it in 1.27 and is not in the weights: load with `flags`", key
        )
        return 1.0
    return factor**0.5 * gain.shape[-1] ** 0.25


def _convert_memory(
    weights: Conversion, prefix: str, fn: Attention, memory: LearnedMemory, dims: Tensor | None
) -> None:
    weights.copy(memory.k, f"{prefix}.mem_k", lambda keys: per_head(keys, None, dims))
    weights.copy(memory.v, f"{prefix}.mem_v")
    norm = fn.source.qk_norm
    if isinstance(norm, RMSQKNorm):
        weights.refuse(
            "x-transformers does not normalize memory keys with `attn_qk_rmsnorm`", f"{prefix}.mem_k"
        )
    if isinstance(norm, L2QKNorm) and norm.groups > 1:
        weights.refuse(
            "x-transformers does not group memory keys with `attn_qk_norm_groups`, only the keys of tokens",
            f"{prefix}.mem_k",
        )
