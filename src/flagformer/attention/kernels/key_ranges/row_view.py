"""The vectors of a strided tensor, gathered by index."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowView(NamedTuple):
    """A tensor as a matrix of rows, and the row of each vector.

    Attributes:
        rows: [R, K].
        row_idx: [B * H * n] long, the row of each vector.
    """

    rows: Tensor
    row_idx: Tensor

    @staticmethod
    def of(x: Tensor, heads: int) -> RowView:
        """View of x [B, G, n, K]; each group serves H / G heads."""
        width, share = x.shape[3], heads // x.shape[1]
        if x.stride(3) != 1 or any(step % width for step in x.stride()[:3]):
            x = x.contiguous()
        row_stride, head_stride, token_stride = (step // width for step in x.stride()[:3])
        row, head, token = (torch.arange(size, device=x.device) for size in (x.shape[0], heads, x.shape[2]))
        index = (row * row_stride)[:, None, None] + (head // share * head_stride)[:, None]
        index = index + token * token_stride
        rows = x.as_strided((int(index[-1, -1, -1]) + 1, width), (width, 1))
        return RowView(rows, index.flatten())

    def at(self, vectors: Tensor) -> Tensor:
        """The vectors of indices [I, n], as [I, n, K]."""
        index = self.row_idx.index_select(0, vectors.flatten())
        return self.rows.index_select(0, index).view(*vectors.shape, -1)
