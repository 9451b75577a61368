"""Conversion of talking heads, learned sinks and gates of x-transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.attention.attention import Attention
from flagformer.attention.gates.head_scale import HeadScale
from flagformer.attention.gates.values import HeadGate, ValueGate
from flagformer.attention.prefix_kv.learned import LearnedMemory
from flagformer.interop.conversion import Conversion
from flagformer.interop.permute import rows_by_head
from flagformer.position.xpos import XPos
from flagformer.score.learned_sink import LearnedSink
from flagformer.score.softclamp import SoftClamp
from flagformer.score.talking_heads import TalkingScores, TalkingWeights


def convert_scores(weights: Conversion, prefix: str, fn: Attention, heads: Tensor | None) -> None:
    """Convert talking heads and the learned sink."""
    path: Any = fn.core.path

    def mixed(weight: Tensor) -> Tensor:
        """Convert a 1x1 convolution [H, H, 1, 1] to [H, H] in the order of heads of this library."""
        square = weight[:, :, 0, 0]
        return square if heads is None else square[heads][:, heads]

    def replacing(weight: Tensor) -> Tensor:
        eye = torch.eye(len(weight)).to(weight)
        return mixed(weight) if weights.dialect.replaces_scores else mixed(weight) + eye

    for mod in (*path.score_mods, *path.weight_mods):
        if isinstance(mod, TalkingScores):
            weights.copy(mod.exchange.weight, f"{prefix}.attend.pre_softmax_talking_heads.weight", replacing)
        elif isinstance(mod, TalkingWeights):
            weights.copy(mod.exchange.weight, f"{prefix}.attend.post_softmax_talking_heads.weight", mixed)
    if isinstance(path.normalizer, LearnedSink):
        weights.copy(
            path.normalizer.score,
            f"{prefix}.attend.head_attn_sink",
            lambda sink: _ordered(sink, heads)[:, None, None],
        )


def convert_gates(weights: Conversion, prefix: str, fn: Attention, heads: Tensor | None) -> None:
    """Convert head scales and gates."""
    for gate in fn.gates:
        if isinstance(gate, HeadScale):
            weights.copy(gate.weight, f"{prefix}.head_scale_params", lambda scale: _ordered(scale[0], heads))
        elif isinstance(gate, HeadGate):
            weights.copy_module(gate.to_gate, f"{prefix}.to_v_head_gate", lambda x: _ordered(x, heads))
        elif isinstance(gate, ValueGate):
            _convert_value_gate(weights, f"{prefix}.to_v_gate", gate, heads)
        elif hasattr(gate, "to_role"):
            _convert_roles(weights, f"{prefix}.to_r.weight", gate, fn)


def _convert_value_gate(weights: Conversion, prefix: str, gate: ValueGate, heads: Tensor | None) -> None:
    """Convert weight and bias of a value gate; 1.27 has a bias, initially 10."""
    width = gate.to_gate.out_features // gate.heads
    weights.copy_module(gate.to_gate, prefix, lambda x: rows_by_head(x, width, heads, None))
    if gate.to_gate.bias is None:
        bias = weights.peek(f"{prefix}.bias")
        if bias is not None and bias.count_nonzero():
            weights.refuse("is not zero: build the model with `attn_gate_values_bias`", f"{prefix}.bias")


def _convert_roles(weights: Conversion, key: str, gate: Any, fn: Attention) -> None:
    """Convert roles; 1.27 has one per key/value head, and one such head or as many as query heads."""
    projection: Any = fn.source.projection
    roles = weights.take(key)
    if projection.groups not in (1, gate.heads):
        weights.refuse("x-transformers has a role per key/value head, this library per query head", key)
    elif roles is not None:
        weights.put(gate.to_role.weight, roles.repeat(gate.heads // projection.groups, 1))


def _ordered(value: Tensor, heads: Tensor | None) -> Tensor:
    return value if heads is None else value[heads]


def check_scores(weights: Conversion, prefix: str, fn: Attention, biased: bool) -> None:
    """Refuse score modifications whose order differs in x-transformers, so that the function differs.

    Args:
        biased: whether this attention has a position bias.
    """
    path: Any = fn.core.path
    mixes = any(isinstance(mod, TalkingScores) for mod in path.score_mods)
    clamps = any(isinstance(mod, SoftClamp) for mod in path.score_mods)
    if fn.core.carries and (biased or mixes or clamps):
        weights.refuse(
            "x-transformers passes scores on after bias, talking heads and clamp, which are then applied "
            "again in each layer; `residual_attn` of this library passes on q k^T only",
            prefix,
        )
    if clamps and biased:
        weights.refuse("x-transformers clamps after the position bias, this library before it", prefix)
    if not any(isinstance(prefix_kv, LearnedMemory) for prefix_kv in fn.prefix_kv):
        return
    if isinstance(getattr(fn.source, "rotation", None), XPos):
        weights.refuse(
            "x-transformers shifts the origin of xPos with the length, which affects memory keys; in this "
            "library it is position 0",
            f"{prefix}.mem_k",
        )
    if weights.dialect.biased_memory and getattr(fn.source, "window", None) is not None:
        weights.refuse(
            "x-transformers 1.27 masks memory keys beyond `attn_max_attend_past`", f"{prefix}.mem_k"
        )
    if biased and weights.dialect.biased_memory:
        weights.refuse(
            "x-transformers 1.27 adds the position bias of keys before the first token to memory keys, which "
            "have none in this library",
            f"{prefix}.mem_k",
        )
