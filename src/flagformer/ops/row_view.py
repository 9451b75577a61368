"""The vectors of a tensor, read by their number wherever they lie in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowView(NamedTuple):
    """
    Attributes:
        rows: [R, K].
        where: [B * H * n] long, the row of each vector.
    """

    rows: Tensor
    where: Tensor

    @staticmethod
    def of(x: Tensor, heads: int) -> RowView:
        """Of x [B, G, n, K]; a group serves H / G heads."""
        width, share = x.shape[3], heads // x.shape[1]
        if x.stride(3) != 1 or any(step % width for step in x.stride()[:3]):
            x = x.contiguous()
        row, head, place = (step // width for step in x.stride()[:3])
        of_row, of_head, of_place = (
            torch.arange(size, device=x.device) for size in (x.shape[0], heads, x.shape[2])
        )
        where = (of_row * row)[:, None, None] + (of_head // share * head)[:, None] + of_place * place
        rows = x.as_strided((int(where[-1, -1, -1]) + 1, width), (width, 1))
        return RowView(rows, where.flatten())

    def at(self, numbers: Tensor) -> Tensor:
        """[I, n] -> [I, n, K]."""
        where = self.where.index_select(0, numbers.flatten())
        return self.rows.index_select(0, where).view(*numbers.shape, -1)
