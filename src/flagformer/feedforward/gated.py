"""The product of a gated linear unit, and the limits of gpt-oss."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from flagformer.feedforward import Activation
from flagformer.flags import Flag

Limit = Annotated[
    float | None,
    Flag(
        "ff_glu_limit",
        "values of the gated linear unit are clamped to +-limit and gates to at most limit, before the"
        " activation (gpt-oss: 7); None: no limit",
        ge=1e-6,
        example=0.25,
        example_with={"ff_glu": True},
    ),
]
Offset = Annotated[
    float,
    Flag(
        "ff_glu_offset",
        "added to the values of the gated linear unit (gpt-oss: 1)",
        example=1.0,
        example_with={"ff_glu": True},
    ),
]
GateScale = Annotated[
    float,
    Flag("ff_glu_gate_scale", "factor of the gates before the activation (Falcon-H1)", ge=1e-6, example=0.5),
]


class Gated(NamedTuple):
    """(clamp(value, -limit, limit) + offset) * activation(min(scale * gate, limit)).

    Attributes:
        limit: None for no limit.
    """

    limit: float | None = None
    offset: float = 0.0
    scale: float = 1.0

    def of(self, hidden: Tensor, activation: Activation) -> Tensor:
        """[..., 2 F], values first -> [..., F]."""
        value, gate = hidden.chunk(2, dim=-1)
        if self.scale != 1.0:
            gate = gate * self.scale
        if self.limit is not None:
            value, gate = value.clamp(-self.limit, self.limit), gate.clamp(max=self.limit)
        if self.offset:
            value = value + self.offset
        return value * activation(gate)
