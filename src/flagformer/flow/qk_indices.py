"""Places where few pairs are looked at: what replaces a tensor of T * S where most pairs never meet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class QKIndices(NamedTuple):
    """Some queries against some keys, by their number (not their place in time), in N blocks.

    Attributes:
        q: [1 or B, N, 1 or h, g, 1] long, which queries.
        k: [1 or B, N, 1 or h, 1, s] long, which keys.
        heads: the h heads of the model that ask.
    """

    q_idx: Tensor
    kv_idx: Tensor
    heads: slice

    def of_rows(self, x: Tensor, index: Tensor) -> Tensor:
        """x [1 or B, T or S] at `index`, one of the two above -> the shape of the index, [1 or B, ...]."""
        return x[_along(x.shape[0], 0, x.device), index]

    def of_pairs(self, x: Tensor) -> Tensor:
        """x [1 or B, 1 or H, 1 or T, 1 or S] -> [1 or B, N, 1 or h, g, s]."""
        heads = x[:, self.heads] if x.shape[1] > 1 else x
        rows = _along(heads.shape[0], 0, x.device)
        ways = _along(heads.shape[1], 2, x.device)
        q = self.q_idx if x.shape[2] > 1 else torch.zeros_like(self.q_idx)
        k = self.kv_idx if x.shape[3] > 1 else torch.zeros_like(self.kv_idx)
        return heads[rows, ways, q, k]


def _along(size: int, dim: int, device: torch.device) -> Tensor:
    """0 ... size - 1 along one of five dimensions."""
    shape = [1] * 5
    shape[dim] = size
    return torch.arange(size, device=device).view(shape)
