"""The attention sublayer: reads like the paper (arXiv:1706.03762, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from flagformer.attention.cores import Core
from flagformer.attention.cores.local import HeadShare
from flagformer.attention.cores.mixed import Mixed
from flagformer.attention.gates import Gate
from flagformer.attention.key_values import Seats
from flagformer.attention.output import Output
from flagformer.attention.scores import ScorePath
from flagformer.attention.source import ContextTokens, OwnTokens, Source
from flagformer.flags import Ready, Spec
from flagformer.flow import Dims, SideInputs
from flagformer.position import Rotation

Slots = Mapping[str, tuple[Spec | Ready, ...]]


class Attention(nn.Module):
    """[B, T, D] -> [B, T, D]: every token gathers from those it may see."""

    seats: Sequence[Seats]  # module lists, typed by what they hold
    gates: Sequence[Gate]

    def __init__(
        self, source: Source, seats: Sequence[Seats], core: Core, gates: Sequence[Gate], output: Output
    ) -> None:
        super().__init__()
        self.source = source
        self.seats = nn.ModuleList(seats)  # type: ignore[assignment]
        self.core = core
        self.gates = nn.ModuleList(gates)  # type: ignore[assignment]
        self.to_out = output

    @property
    def seat_count(self) -> int:
        """Keys in front that have no position."""
        return sum(seats.count for seats in self.seats)

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        q, kv = self.source(x, side)
        for seats in self.seats:
            k, v = seats.entries()
            kv = kv.prepend(self.source.qk_norm.keys(k), v)
        out = self.core(q, kv, side)
        for gate in self.gates:
            out = gate(out, x)
        return self.to_out(out.transpose(1, 2).flatten(2))  # [B, H, T, K] -> [B, T, D]


def build_attention(slots: Slots, dims: Dims, rotation: Rotation, cross: bool) -> Attention:
    """Fills the slots of one attention sublayer."""
    projection = slots["projection"][0].build(dims, cross)
    qk_norm = slots["qk_norm"][0].build(dims, projection.groups)
    source = (
        ContextTokens(projection, qk_norm)
        if cross
        else OwnTokens(projection, qk_norm, rotation, dims.dim_head)
    )
    seats = [filler.build(dims, projection.groups) for filler in slots["key_values"]]
    gates = [filler.build(dims) for filler in slots["gate"]]
    core = _build_core(slots, dims, qk_norm.scale, cross)
    return Attention(source, seats, core, gates, slots["output"][0].build(dims))


def _build_core(slots: Slots, dims: Dims, scale: float, cross: bool) -> Core:
    """One core, or two that share the heads, each with scores and a kernel of its own."""
    local: HeadShare = slots["local"][0].build(dims)
    parts: list[tuple[Core, int]] = []
    for count, served in ((local.heads, local.core), (dims.heads - local.heads, slots["core"][0].build)):
        if count:
            of_part = replace(dims, heads=count)
            mods = [filler.build(of_part) for filler in slots["score"]]
            mixes = [filler.build(of_part) for filler in slots["mix"]]
            path = ScorePath(scale, mods, slots["weights"][0].build(of_part), mixes)
            parts.append((served(slots["kernel"][0].build(path), path, cross, of_part), count))
    return parts[0][0] if len(parts) == 1 else Mixed(parts)
