"""The sublayers of x-transformers: attention, feedforward, norms and what scales a branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.attention import Attention
from flagformer.attention.key_values.seats import LearnedMemory
from flagformer.attention.output.project import AttentionOnAttention
from flagformer.attention.qk_norm.norms import RMS, Cosine, Gain
from flagformer.branch.scale import Half, LayerScale
from flagformer.entry.shift import ShiftTokens
from flagformer.feedforward.dense import GLU
from flagformer.feedforward.dense import Gain as InnerGain
from flagformer.interop.heads import carry_gates, carry_path
from flagformer.interop.permute import columns_by_head, grouped_heads, half_split, per_head, rows_by_head
from flagformer.interop.source import Carried, Source
from flagformer.norm import Norm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.norm.simple_rmsnorm import SimpleRMSNorm
from flagformer.position.rotary import Rotary
from flagformer.position.xpos import XPos


def carry_norm(source: Source, carried: Carried, prefix: str, norm: object, offset: float) -> None:
    """A LayerNorm's gain is `gamma` there, an RMSNorm's `g`; `offset` is what it adds to what is stored."""
    if not isinstance(norm, Norm):
        return
    if isinstance(norm, SimpleRMSNorm):
        return
    gain = source.take(f"{prefix}.g" if isinstance(norm, RMSNorm | ScaleNorm) else f"{prefix}.gamma")
    factor = norm.width**0.5 if isinstance(norm, ScaleNorm) else 1.0  # stored there without the sqrt(D)
    carried.put(norm.gain, None if gain is None else (gain + offset) * factor)


def carry_branch(source: Source, carried: Carried, prefix: str, sublayer: Any, offset: float) -> str:
    """Takes LayerScale; returns the prefix of the sublayer's function, which it and macaron wrap."""
    branch = sublayer.branch
    parts = list(branch) if isinstance(branch, nn.Sequential) else [branch]
    for part in reversed(parts):
        if isinstance(part, LayerScale):
            gain = source.take(f"{prefix}.gamma")
            carried.put(part.gain, None if gain is None else gain + offset)
            prefix += ".fn"
        elif isinstance(part, Half):
            prefix += ".fn"
        if isinstance(part, LayerScale | Half) and isinstance(sublayer.branch_norm, Norm):
            source.refuse(
                f"`{prefix}`: x-transformers scales a branch before the sandwich norm, this library behind it"
            )
    return prefix + ".fn" if isinstance(sublayer.entry, ShiftTokens) else prefix


def carry_feedforward(source: Source, carried: Carried, prefix: str, fn: Any) -> None:
    gated = isinstance(fn, GLU)
    first = f"{prefix}.ff.0.proj" if gated else f"{prefix}.ff.0.0"
    norm, last = fn.norm, fn.outer
    carried.put(fn.inner.weight, source.take(f"{first}.weight"))
    bias = source.peek(f"{first}.bias")
    if fn.inner.bias is not None:
        carried.put(fn.inner.bias, bias)
    elif bias is not None and bias.count_nonzero():
        source.refuse(
            f"`{first}.bias` is not zero: x-transformers keeps this bias under `ff_no_bias`; "
            "build this model without `ff_no_bias`"
        )
    if gated and isinstance(fn.gain, InnerGain):
        carried.put(fn.gain.value, source.take(f"{prefix}.ff.0.mult_bias"))
    carry_norm(source, carried, f"{prefix}.ff.1", norm, 0.0)
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


def carry_attention(source: Source, carried: Carried, prefix: str, fn: Attention) -> None:
    """Queries, keys and values (one weight here), their norms, memory, and the output projection."""
    projection: Any = fn.source.projection
    heads, (_, width, value_width) = head_order(fn), fn.source.entry_shape
    rotation = rotary_of(getattr(fn.source, "rotation", None))
    dims = None if rotation is None else half_split(width, 2 * len(rotation.frequencies.value))
    q, k, v = (source.take(f"{prefix}.to_{name}.weight") for name in "qkv")
    if q is not None and k is not None and v is not None:
        _carry_projection(
            carried, projection, rows_by_head(q, width, heads, dims), rows_by_head(k, width, None, dims), v
        )
    _carry_qk_norm(source, carried, prefix, fn, heads, dims)
    for seats in fn.seats:
        if isinstance(seats, LearnedMemory):
            _carry_memory(source, carried, prefix, fn, seats, dims)
    carry_path(source, carried, prefix, fn, heads)
    carry_gates(source, carried, prefix, fn, heads)
    gated = isinstance(fn.to_out, AttentionOnAttention)
    out = source.peek(f"{prefix}.to_out.0.weight" if gated else f"{prefix}.to_out.weight")
    if out is None and projection.heads == 1:
        out = torch.eye(value_width)  # one head is not projected there
    elif out is not None and heads is not None:
        out = columns_by_head(out, value_width, heads)
    carried.put(fn.to_out.weight, out)


def rotary_of(rotation: object) -> Rotary | None:
    """What turns, alone or inside xPos."""
    inner = rotation.rotary if isinstance(rotation, XPos) else rotation
    return inner if isinstance(inner, Rotary) else None


def _carry_projection(carried: Carried, projection: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
    if hasattr(projection, "to_qkv"):
        carried.put(projection.to_qkv.weight, torch.cat((q, k, v)))
        return
    carried.put(projection.to_q.weight, q)
    carried.put(projection.to_kv.weight, torch.cat((k, v)))


def _carry_qk_norm(
    source: Source, carried: Carried, prefix: str, fn: Attention, heads: Tensor | None, dims: Tensor | None
) -> None:
    norm: Any = fn.source.qk_norm
    if isinstance(norm, Cosine):
        _carry_cosine(source, carried, prefix, norm, heads, dims)
    if not isinstance(norm, RMS):
        return
    for target, name, order in ((norm.q_gain, "q_rmsnorm", heads), (norm.k_gain, "k_rmsnorm", None)):
        gain = source.take(f"{prefix}.{name}.gamma")
        carried.put(target, None if gain is None else per_head(gain + 1, order, dims))


def _carry_cosine(
    source: Source, carried: Carried, prefix: str, norm: Any, heads: Tensor | None, dims: Tensor | None
) -> None:
    if norm.parts > 1 and dims is not None:
        source.refuse("`attn_qk_norm_groups` with rotated heads: pairs stand in other parts of a head there")
    for gain, name, order in ((norm.q_gain, "q", heads), (norm.k_gain, "k", None)):
        if isinstance(gain, Gain):
            value = source.take(f"{prefix}.qk_norm_{name}_scale")
            carried.put(gain.value, None if value is None else per_head(value, order, dims))


def _carry_memory(
    source: Source, carried: Carried, prefix: str, fn: Attention, seats: LearnedMemory, dims: Tensor | None
) -> None:
    keys, values = source.take(f"{prefix}.mem_k"), source.take(f"{prefix}.mem_v")
    carried.put(seats.k, None if keys is None else per_head(keys, None, dims))
    carried.put(seats.v, values)
    if isinstance(fn.source.qk_norm, RMS):
        source.refuse(
            f"`{prefix}.mem_k`: x-transformers leaves memory keys as they are under `attn_qk_rmsnorm`"
        )
