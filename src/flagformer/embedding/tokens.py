"""A vector for each token of a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """ids [B, T] long -> [B, T, D]; starts as a normal distribution of standard deviation D ** -0.5."""

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_tokens, dim) * dim**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight)
