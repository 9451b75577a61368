"""What x-transformers learns between scores and the output projection: mixing, a sink, gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.attention.attention import Attention
from flagformer.attention.gates.head_scale import HeadScale
from flagformer.attention.gates.values import HeadGate, ValueGate
from flagformer.interop.permute import rows_by_head
from flagformer.interop.source import Carried, Source
from flagformer.score.learned_sink import LearnedSink
from flagformer.score.talking_heads import TalkingScores, TalkingWeights


def carry_path(source: Source, carried: Carried, prefix: str, fn: Attention, heads: Tensor | None) -> None:
    """Talking heads and the sink."""
    path: Any = fn.core.path
    for mod in (*path.mods, *path.mixes):
        if isinstance(mod, TalkingScores):
            mixed = source.take(f"{prefix}.attend.pre_softmax_talking_heads.weight")
            # added to the scores there, in place of them here
            carried.put(mod.exchange.weight, None if mixed is None else _square(mixed, heads) + _eye(mixed))
        elif isinstance(mod, TalkingWeights):
            mixed = source.take(f"{prefix}.attend.post_softmax_talking_heads.weight")
            carried.put(mod.exchange.weight, None if mixed is None else _square(mixed, heads))
    if isinstance(path.weights, LearnedSink):
        sink = source.take(f"{prefix}.attend.head_attn_sink")
        carried.put(path.weights.score, None if sink is None else _ordered(sink, heads)[:, None, None])


def carry_gates(source: Source, carried: Carried, prefix: str, fn: Attention, heads: Tensor | None) -> None:
    """Gains and gates of heads."""
    for gate in fn.gates:
        if isinstance(gate, HeadScale):
            gain = source.take(f"{prefix}.head_scale_params")
            carried.put(gate.gain, None if gain is None else _ordered(gain[0], heads))
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


def _ordered(value: Tensor, heads: Tensor | None) -> Tensor:
    return value if heads is None else value[heads]


def _square(weight: Tensor, heads: Tensor | None) -> Tensor:
    """[H, H, 1, 1] of a convolution -> [H, H], by the heads' order here."""
    square = weight[:, :, 0, 0]
    return square if heads is None else square[heads][:, heads]


def _eye(weight: Tensor) -> Tensor:
    return torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
