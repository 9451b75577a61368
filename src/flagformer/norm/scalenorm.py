"""ScaleNorm (arXiv:1910.05895)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.norm import Norm
from flagformer.norm.rmsnorm import Eps, rsqrt_ms


@component("norm", select="use_scalenorm", paper="arXiv:1910.05895, section 2.2")
class ScaleNorm(Norm):
    """Unit L2 norm times one learned scale, initially sqrt(D)."""

    def __init__(self, dim: int, *, eps: Eps = None) -> None:
        super().__init__()
        self.eps = eps
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.dim**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * (rsqrt_ms(x, self.eps) * (self.weight * self.dim**-0.5))
