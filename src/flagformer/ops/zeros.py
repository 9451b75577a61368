"""Zero padding of the tokens of a row."""

from __future__ import annotations

from torch import Tensor, cat


def with_zeros(x: Tensor, front: int, back: int) -> Tensor:
    """x [B, G, S, K] -> [B, G, front + S + back, K].

    `F.pad` by zero positions keeps the strides of x, and those of a traced graph differ.
    """
    batch, groups, _, width = x.shape
    before, after = (x.new_zeros(batch, groups, size, width) for size in (front, back))
    return cat([before, x, after], dim=2)
