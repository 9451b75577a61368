"""Conversion of talking heads, learned sinks and gates of x-transformers."""

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
    source: SourceWeights, converted: ConvertedWeights, prefix: str, fn: Attention, heads: Tensor | None
) -> None:
    """Convert talking heads and the learned sink."""
    path: Any = fn.core.path
    for mod in (*path.score_mods, *path.weight_mods):
        if isinstance(mod, TalkingScores):
            mixed = source.take(f"{prefix}.attend.pre_softmax_talking_heads.weight")
            if mixed is not None and not source.dialect.replaces_scores:
                mixed = mixed + torch.eye(mixed.shape[0]).to(mixed)[:, :, None, None]
            converted.put(mod.exchange.weight, None if mixed is None else _square(mixed, heads))
        elif isinstance(mod, TalkingWeights):
            mixed = source.take(f"{prefix}.attend.post_softmax_talking_heads.weight")
            converted.put(mod.exchange.weight, None if mixed is None else _square(mixed, heads))
    if isinstance(path.normalizer, LearnedSink):
        sink = source.take(f"{prefix}.attend.head_attn_sink")
        converted.put(path.normalizer.score, None if sink is None else _ordered(sink, heads)[:, None, None])


def convert_gates(
    source: SourceWeights, converted: ConvertedWeights, prefix: str, fn: Attention, heads: Tensor | None
) -> None:
    """Convert head scales and gates."""
    for gate in fn.gates:
        if isinstance(gate, HeadScale):
            gain = source.take(f"{prefix}.head_scale_params")
            converted.put(gate.weight, None if gain is None else _ordered(gain[0], heads))
        elif isinstance(gate, HeadGate):
            for name in ("weight", "bias"):
                value = source.take(f"{prefix}.to_v_head_gate.{name}")
                converted.put(getattr(gate.to_gate, name), None if value is None else _ordered(value, heads))
        elif isinstance(gate, ValueGate):
            value = source.take(f"{prefix}.to_v_gate.weight")
            width = gate.to_gate.out_features // gate.heads
            converted.put(
                gate.to_gate.weight, None if value is None else rows_by_head(value, width, heads, None)
            )
            _convert_gate_bias(source, converted, f"{prefix}.to_v_gate.bias", gate, heads)
        elif hasattr(gate, "to_role"):
            _convert_roles(source, converted, f"{prefix}.to_r.weight", gate, fn)


def _convert_gate_bias(
    source: SourceWeights, converted: ConvertedWeights, key: str, gate: ValueGate, heads: Tensor | None
) -> None:
    """Convert the bias of a value gate: 1.27 has one, initially 10."""
    if gate.to_gate.bias is not None:
        bias = source.take(key)
        width = gate.to_gate.out_features // gate.heads
        converted.put(
            gate.to_gate.bias, None if bias is None else rows_by_head(bias[:, None], width, heads, None)[:, 0]
        )
        return
    bias = source.peek(key)
    if bias is not None and bias.count_nonzero():
        source.refuse("is not zero: build the model with `attn_gate_values_bias`", key)


def _convert_roles(
    source: SourceWeights, converted: ConvertedWeights, key: str, gate: Any, fn: Attention
) -> None:
    """Convert roles; 1.27 has one per key/value head, and one such head or as many as query heads."""
    projection: Any = fn.source.projection
    roles = source.take(key)
    if projection.groups not in (1, gate.heads):
        source.refuse("x-transformers has a role per key/value head, this library per query head", key)
    elif roles is not None:
        converted.put(gate.to_role.weight, roles.repeat(gate.heads // projection.groups, 1))


def _ordered(value: Tensor, heads: Tensor | None) -> Tensor:
    return value if heads is None else value[heads]


def _square(weight: Tensor, heads: Tensor | None) -> Tensor:
    """Convert a 1x1 convolution [H, H, 1, 1] to [H, H] in the order of heads of this library."""
    square = weight[:, :, 0, 0]
    return square if heads is None else square[heads][:, heads]


def check_scores(source: SourceWeights, prefix: str, fn: Attention, biased: bool) -> None:
    """Refuse score modifications whose order differs in x-transformers, so that the function differs.

    Args:
        biased: whether this attention has a position bias.
    """
    path: Any = fn.core.path
    mixes = any(isinstance(mod, TalkingScores) for mod in path.score_mods)
    clamps = any(isinstance(mod, SoftClamp) for mod in path.score_mods)
    if fn.core.carries and (biased or mixes or clamps):
        source.refuse(
            "x-transformers passes scores on after bias, talking heads and clamp, which are then applied "
            "again in each layer; `residual_attn` of this library passes on q k^T only",
            prefix,
        )
    if clamps and biased:
        source.refuse("x-transformers clamps after the position bias, this library before it", prefix)
    if not any(isinstance(prefix_kv, LearnedMemory) for prefix_kv in fn.prefix_kv):
        return
    if isinstance(getattr(fn.source, "rotation", None), XPos):
        source.refuse(
            "x-transformers shifts the origin of xPos with the length, which affects memory keys; in this "
            "library it is position 0",
            f"{prefix}.mem_k",
        )
    if source.dialect.biased_memory and getattr(fn.source, "window", None) is not None:
        source.refuse(
            "x-transformers 1.27 masks memory keys beyond `attn_max_attend_past`", f"{prefix}.mem_k"
        )
    if biased and source.dialect.biased_memory:
        source.refuse(
            "x-transformers 1.27 adds the position bias of keys before the first token to memory keys, which "
            "have none in this library",
            f"{prefix}.mem_k",
        )
