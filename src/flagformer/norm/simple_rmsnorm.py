"""SimpleRMSNorm (arXiv:2307.14995)."""

from __future__ import annotations

from torch import Tensor

from flagformer.flags import component
from flagformer.norm import Norm
from flagformer.norm.rmsnorm import Eps, rsqrt_ms


@component("norm", select="use_simple_rmsnorm", paper="arXiv:2307.14995, section 2.4")
class SimpleRMSNorm(Norm):
    """Unit root mean square, without parameters."""

    def __init__(self, dim: int, *, eps: Eps = None) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * rsqrt_ms(x, self.eps)
