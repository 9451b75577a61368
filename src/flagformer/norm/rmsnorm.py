"""RMSNorm (arXiv:1910.07467)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.norm import Norm

# Only guards the zero vector: a larger one would shrink small activations (the paper has none).
EPSILON = 1e-8


@component("norm", select="use_rmsnorm", paper="arXiv:1910.07467")
class RMSNorm(Norm):
    """Unit root mean square, a gain per dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.gain.shape, self.gain, EPSILON)
