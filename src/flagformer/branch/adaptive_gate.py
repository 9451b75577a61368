"""A gate of a branch by a condition, initially zero (adaLN-Zero, arXiv:2212.09748)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from flagformer.branch import Branch
from flagformer.flags import Flag, component
from flagformer.flow import Dims, SideInputs
from flagformer.ops.zero_linear import ZeroLinear


@component("branch", select="adaptive_gate", paper="arXiv:2212.09748, section 3.2")
class AdaptiveGate(Branch):
    """The output of a sublayer times W silu(c) + b, for the condition c of each token; W and b start at zero.

    Each sublayer starts as the identity. Without a condition c is zero, so that b is the gate.
    """

    reads_side = True

    def __init__(
        self,
        dims: Dims,
        *,
        width: Annotated[
            int, Flag("adaptive_gate", "width C of the condition of gates of branches", ge=0, example=6)
        ],
    ) -> None:
        super().__init__()
        self.condition_dim = width
        self.to_gate = ZeroLinear(width, dims.dim)

    def forward(self, out: Tensor, side: SideInputs) -> Tensor:  # type: ignore[override]
        """out [B, T, D], `side.condition` [B, 1 or T, C] or None -> [B, T, D]."""
        condition = side.condition
        if condition is None:
            condition = out.new_zeros(1, 1, self.condition_dim)
        return out * self.to_gate(F.silu(condition))
