"""RMSNorm (arXiv:1910.07467)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.norm import Norm

# Guards against division by zero. The paper has no epsilon; a larger one would shrink small activations.
MIN_NORM = 1e-12
# Dtypes that can represent it.
WITH_MIN_NORM = (torch.float32, torch.bfloat16, torch.float64)

Eps = Annotated[
    float | None,
    Flag(
        "norm_eps",
        "added to the mean square (LayerNorm: the variance); None: 1e-5 in LayerNorm, no epsilon in others",
        ge=1e-12,
        lt=1,
        example=0.25,
    ),
]
WeightOffset = Annotated[
    float,
    Flag("norm_weight_offset", "added to the weight, which starts at 1 minus it (Gemma: 1)", example=1.0),
]


def min_norm(x: Tensor) -> float:
    """Return the lower bound of the vector norm; in fp16 it is that of a root mean square of 6e-5."""
    return MIN_NORM if x.dtype in WITH_MIN_NORM else torch.finfo(x.dtype).tiny * x.shape[-1] ** 0.5


def rsqrt_ms(x: Tensor, eps: float | None = None) -> Tensor:
    """Return the reciprocal root mean square: [..., D] -> [..., 1].

    It is computed from the vector norm, whose backward on a CPU takes 0.6 of the time of `F.rms_norm`.

    Args:
        eps: added to the mean square, in fp32; None: a guard against division by zero.
    """
    if eps is None:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        lowest = MIN_NORM if x.dtype in WITH_MIN_NORM else min_norm(x)
        return length.clamp(min=lowest).reciprocal() * x.shape[-1] ** 0.5
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).to(torch.promote_types(x.dtype, torch.float32))
    # fp16 does not hold the reciprocal root of a smaller epsilon
    eps = max(eps, torch.finfo(x.dtype).tiny ** 2)
    return (length.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)


@component("norm", select="use_rmsnorm", paper="arXiv:1910.07467")
class RMSNorm(Norm):
    """Unit root mean square, with a learned weight per dimension."""

    def __init__(self, dim: int, *, eps: Eps = None, offset: WeightOffset = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, float(offset)
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 1 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        return x * (rsqrt_ms(x, self.eps) * weight)
