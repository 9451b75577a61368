"""The pooler of BERT (arXiv:1810.04805): a projection of one vector for each row, and a tanh."""

from __future__ import annotations

from torch import Tensor, nn


class Pooler(nn.Module):
    """tanh(W x + b): [B, D] -> [B, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).tanh()
