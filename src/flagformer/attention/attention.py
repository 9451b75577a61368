"""The attention sublayer: reads like the paper (arXiv:1706.03762, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from flagformer.attention.cores import Core
from flagformer.attention.gates import Gate
from flagformer.attention.key_values import Seats
from flagformer.attention.output import Output
from flagformer.attention.scores import ScorePath
from flagformer.attention.source import ContextTokens, OwnTokens, Source
from flagformer.attention.values import Values
from flagformer.flags import Ready, Spec
from flagformer.flow import Dims, SideInputs
from flagformer.position import Rotation
from flagformer.position.none import NoRotation


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

    @property
    def window(self) -> int | None:
        """How many of the last tokens a query sees, itself included; None: all."""
        return self.source.window

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        q, kv = self.source(x, side)
        for seats in self.seats:
            k, v = seats.entries()
            kv = kv.prepend(self.source.qk_norm.keys(k), v)
        out = self.core(q, kv, side)
        for gate in self.gates:
            out = gate(out, x)
        return self.to_out(out.transpose(1, 2).flatten(2))  # [B, H, T, V] -> [B, T, D]


def build_attention(
    slots: Mapping[str, tuple[Spec | Ready, ...]], dims: Dims, rotation: Rotation, cross: bool
) -> Attention:
    """Fills the slots of one attention sublayer."""
    values = Values(dims.dim_head)
    for rule in slots["values"]:
        values = rule.build(dims, rotation)(values)
    dims = replace(dims, value_width=values.width)
    projection = slots["projection"][0].build(dims, cross, values.shared)
    qk_norm = slots["qk_norm"][0].build(dims, projection.groups)
    source: Source = ContextTokens(projection, qk_norm, dims)
    if not cross:
        of_values = rotation if values.turned else NoRotation(dims)
        past = slots["past"][0].build()
        source = OwnTokens(projection, qk_norm, dims, rotation, of_values, past.width)
    seats = [filler.build(dims, projection.groups) for filler in slots["key_values"]]
    mods = [filler.build(dims) for filler in slots["score"]]
    mixes = [filler.build(dims) for filler in slots["mix"]]
    path = ScorePath(qk_norm.scale, mods, slots["weights"][0].build(dims), mixes)
    core = slots["core"][0].build(slots["kernel"][0].build(path), path, cross)
    gates = [filler.build(dims) for filler in slots["gate"]]
    return Attention(source, seats, core, gates, slots["output"][0].build(dims))
