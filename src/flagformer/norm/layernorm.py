"""LayerNorm (arXiv:1607.06450)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.norm import Norm
from flagformer.norm.rmsnorm import Eps, WeightOffset

DEFAULT_EPS = 1e-5


@component("norm", paper="arXiv:1607.06450")
class LayerNorm(Norm):
    """Zero mean and unit variance, with a learned weight per dimension.

    Departure from the paper: no bias by default, as the projection that follows can represent it.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: Eps = None,
        bias: Annotated[bool, Flag("norm_bias", "a learned bias in each LayerNorm", neutral=True)] = False,
        offset: WeightOffset = 0.0,
    ) -> None:
        super().__init__()
        self.eps, self.offset = DEFAULT_EPS if eps is None else float(eps), float(offset)
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 1 - self.offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        return F.layer_norm(x, self.weight.shape, weight, self.bias, self.eps)
