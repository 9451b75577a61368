"""A vector for each token of a vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.ops.identity import identity
from flagformer.ops.unit import unit_length


class TokenEmbedding(nn.Module):
    """ids [B, T] long -> [B, T, D]; starts as a normal distribution of standard deviation D ** -0.5.

    Args:
        unit: vectors are read with length 1 and start with standard deviation 1e-5: only directions are
            learned, and small steps turn them quickly.
    """

    def __init__(self, num_tokens: int, dim: int, unit: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_tokens, dim) * (1e-5 if unit else dim**-0.5))
        self.form = unit_length if unit else identity

    def forward(self, ids: Tensor) -> Tensor:
        return self.form(F.embedding(ids, self.weight))

    def rows(self) -> Tensor:
        """[V, D], every vector as it is read."""
        return self.form(self.weight)
