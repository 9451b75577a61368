"""LayerNorm without bias (arXiv:1607.06450)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.norm import Norm


@component("norm", paper="arXiv:1607.06450")
class LayerNorm(Norm):
    """Zero mean and unit variance, with a learned weight per dimension.

    Departure from the paper: no bias, as the projection that follows can represent it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight)
