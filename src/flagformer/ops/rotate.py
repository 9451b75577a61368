"""Turning pairs of dimensions by an angle."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_half_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + R/2) of the first R dimensions of x; the others pass.

    Args:
        x: [B, H, T, K].
        cos, sin: [1 or B, 1, T, R/2], broadcast over heads.
    """
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*turned, rest] if rest.shape[-1] else turned, dim=-1)
