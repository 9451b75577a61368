"""Norms whose scale and shift are functions of a condition (adaLN, arXiv:2212.09748)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from flagformer.flags import Flag, component
from flagformer.flow import SideInputs
from flagformer.norm import Norm
from flagformer.norm.layernorm import DEFAULT_EPS
from flagformer.norm.rmsnorm import Eps, rsqrt_ms
from flagformer.ops.zero_linear import ZeroLinear


class AdaptiveNorm(Norm):
    """norm(x) * (1 + scale) + shift, where (scale, shift) = W silu(c) + b for the condition c of each token.

    W and b start at zero. Without a condition c is zero, so that b is the scale and shift.
    """

    reads_side = True

    def __init__(self, dim: int, condition_dim: int) -> None:
        super().__init__()
        self.dim, self.condition_dim = dim, condition_dim
        self.to_scale_shift = ZeroLinear(condition_dim, 2 * dim)

    def init_neutral(self) -> float:
        """Start without a condition; a graft sets the biases to the scale and shift of the old norm."""
        self.to_scale_shift.reset_parameters()
        return 1.0

    @abstractmethod
    def normalized(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], without parameters."""

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:  # type: ignore[override]
        """x [B, T, D], `side.condition` [B, 1 or T, C] or None -> [B, T, D]."""
        condition = side.condition
        if condition is None:
            condition = x.new_zeros(1, 1, self.condition_dim)
        scale, shift = self.to_scale_shift(F.silu(condition)).chunk(2, dim=-1)
        return self.normalized(x) * (1 + scale) + shift


@component("norm", select="adaptive_layernorm", paper="arXiv:2212.09748, section 3.2")
class AdaptiveLayerNorm(AdaptiveNorm):
    """LayerNorm whose scale and shift come from the `condition` of the call; they start as 1 and 0.

    With `adaptive_gate` it is adaLN-Zero.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: Annotated[
            int, Flag("adaptive_layernorm", "width C of the condition of LayerNorm", ge=0, example=6)
        ],
        eps: Eps = None,
    ) -> None:
        super().__init__(dim, width)
        self.eps = DEFAULT_EPS if eps is None else float(eps)

    def normalized(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), eps=self.eps)


@component("norm", select="adaptive_rmsnorm", paper="arXiv:2212.09748, section 3.2")
class AdaptiveRMSNorm(AdaptiveNorm):
    """RMSNorm whose scale and shift come from the `condition` of the call; they start as 1 and 0."""

    def __init__(
        self,
        dim: int,
        *,
        width: Annotated[
            int, Flag("adaptive_rmsnorm", "width C of the condition of RMSNorm", ge=0, example=6)
        ],
        eps: Eps = None,
    ) -> None:
        super().__init__(dim, width)
        self.eps = eps

    def normalized(self, x: Tensor) -> Tensor:
        return x * rsqrt_ms(x, self.eps)
