"""Rotation of pairs of dimensions."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_half_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + R/2) of the first R dimensions of x; the others are unchanged.

    Args:
        x: [B, H, T, K].
        cos: [1 or B, 1, T, R], the cosine of each pair's angle, for both dimensions.
        sin: [1 or B, 1, T, R], the sine, negated for the first dimension of each pair.
    """
    width = cos.shape[-1]
    part = x[..., :width]
    rotated = torch.addcmul(part * cos, part.roll(width // 2, dims=-1), sin)
    return rotated if width == x.shape[-1] else torch.cat([rotated, x[..., width:]], dim=-1)
