"""A component: a norm with flags of its own."""

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.norm import Norm


@component("norm", select="use_abs_norm")
class AbsNorm(Norm):
    """x / mean(|x|), times a learned weight: [..., D] -> [..., D]."""

    def __init__(
        self, dim: int, *, eps: Annotated[float, Flag("abs_norm_eps", "added to the mean", ge=0)] = 1e-6
    ) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)
