"""What x-transformers learns between scores and the output projection: mixing, a sink, gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.attention.attention import Attention
from flagformer.attention.gates.head_scale import HeadScale
from flagformer.attention.gates.values import HeadGate, ValueGate
from flagformer.attention.prefix_kv.learned import LearnedMemory
from flagformer.interop.permute import rows_by_head
from flagformer.interop.source import ConvertedWeights, SourceWeights
from flagformer.position.xpos import XPos
from flagformer.score.learned_sink import LearnedSink
from flagformer.score.softclamp import SoftClamp
from flagformer.score.talking_heads import TalkingScores, TalkingWeights


def convert_scores(
    source: SourceWeights, carried: ConvertedWeights, prefix: str, fn: Attention, heads: Tensor | None
) -> None:
    """Talking heads and the sink."""
    path: Any = fn.core.path
    for mod in (*path.score_mods, *path.weight_mods):
        if isinstance(mod, TalkingScores):
            mixed = source.take(f"{prefix}.attend.pre_softmax_talking_heads.weight")
            if mixed is not None and not source.dialect.replaces_scores:
                mixed = mixed + torch.eye(mixed.shape[0]).to(mixed)[:, :, None, None]
            carried.put(mod.exchange.weight, None if mixed is None else _square(mixed, heads))
        elif isinstance(mod, TalkingWeights):
            mixed = source.take(f"{prefix}.attend.post_softmax_talking_heads.weight")
            carried.put(mod.exchange.weight, None if mixed is None else _square(mixed, heads))
    if isinstance(path.normalizer, LearnedSink):
        sink = source.take(f"{prefix}.attend.head_attn_sink")
        carried.put(path.normalizer.score, None if sink is None else _ordered(sink, heads)[:, None, None])


def convert_gates(
    source: SourceWeights, carried: ConvertedWeights, prefix: str, fn: Attention, heads: Tensor | None
) -> None:
    """Gains and gates of heads."""
    for gate in fn.gates:
        if isinstance(gate, HeadScale):
            gain = source.take(f"{prefix}.head_scale_params")
            carried.put(gate.weight, None if gain is None else _ordered(gain[0], heads))
        elif isinstance(gate, HeadGate):
            for name in ("weight", "bias"):
                value = source.take(f"{prefix}.to_v_head_gate.{name}")
                carried.put(getattr(gate.to_gate, name), None if value is None else _ordered(value, heads))
        elif isinstance(gate, ValueGate):
            value = source.take(f"{prefix}.to_v_gate.weight")
            width = gate.to_gate.out_features // gate.heads
            carried.put(
                gate.to_gate.weight, None if value is None else rows_by_head(value, width, heads, None)
            )
            _carry_gate_bias(source, carried, f"{prefix}.to_v_gate.bias", gate, heads)
        elif hasattr(gate, "to_role"):
            _carry_roles(source, carried, f"{prefix}.to_r.weight", gate, fn)


def _carry_gate_bias(
    source: SourceWeights, carried: ConvertedWeights, key: str, gate: ValueGate, heads: Tensor | None
) -> None:
    """1.27 has one, which starts at 10."""
    if gate.to_gate.bias is not None:
        bias = source.take(key)
        width = gate.to_gate.out_features // gate.heads
        carried.put(
            gate.to_gate.bias, None if bias is None else rows_by_head(bias[:, None], width, heads, None)[:, 0]
        )
        return
    bias = source.peek(key)
    if bias is not None and bias.count_nonzero():
        source.refuse("is not zero: build this model with `attn_gate_values_bias`", key)


def _carry_roles(
    source: SourceWeights, carried: ConvertedWeights, key: str, gate: Any, fn: Attention
) -> None:
    """1.27 has a role for each key/value head, and multiplies where there is one or as many as queries."""
    projection: Any = fn.source.projection
    roles = source.take(key)
    if projection.groups not in (1, gate.heads):
        source.refuse(
            "x-transformers has a role for each key/value head, this library for each query head", key
        )
    elif roles is not None:
        carried.put(gate.to_role.weight, roles.repeat(gate.heads // projection.groups, 1))


def _ordered(value: Tensor, heads: Tensor | None) -> Tensor:
    return value if heads is None else value[heads]


def _square(weight: Tensor, heads: Tensor | None) -> Tensor:
    """[H, H, 1, 1] of a convolution -> [H, H], by the heads' order here."""
    square = weight[:, :, 0, 0]
    return square if heads is None else square[heads][:, heads]


def check_scores(source: SourceWeights, prefix: str, fn: Attention, biased: bool) -> None:
    """What acts on scores in another order there, so that equal weights would be another function.

    Args:
        biased: whether a position bias reaches this attention.
    """
    path: Any = fn.core.path
    talks = any(isinstance(mod, TalkingScores) for mod in path.score_mods)
    clamps = any(isinstance(mod, SoftClamp) for mod in path.score_mods)
    if fn.core.carries and (biased or talks or clamps):
        source.refuse(
            "x-transformers hands on scores behind bias, talking heads and clamp, so that they count once a "
            "layer; `residual_attn` here hands on the products alone",
            prefix,
        )
    if clamps and biased:
        source.refuse("x-transformers clamps behind the position bias, this library in front of it", prefix)
    if not any(isinstance(seats, LearnedMemory) for seats in fn.prefix_kv):
        return
    if isinstance(getattr(fn.source, "rotation", None), XPos):
        source.refuse(
            "x-transformers moves the origin of xPos with the length, which memory keys notice; "
            "it is position 0 here",
            f"{prefix}.mem_k",
        )
    if source.dialect.biased_memory and getattr(fn.source, "window", None) is not None:
        source.refuse(
            "x-transformers 1.27 hides memory keys behind `attn_max_attend_past`", f"{prefix}.mem_k"
        )
    if biased and source.dialect.biased_memory:
        source.refuse(
            "x-transformers 1.27 gives memory keys the position bias of keys in front of the first token, "
            "memory here has none",
            f"{prefix}.mem_k",
        )
