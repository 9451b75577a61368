"""Turning pairs of dimensions by an angle."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_half_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + R/2) of the first R dimensions of x; the others pass.

    Args:
        x: [B, H, T, K].
        cos: [1 or B, 1, T, R], the cosine of each pair's angle, twice.
        sin: [1 or B, 1, T, R], the sine, negative for the first of each pair.
    """
    width = cos.shape[-1]
    part = x[..., :width]
    turned = torch.addcmul(part * cos, part.roll(width // 2, dims=-1), sin)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)
