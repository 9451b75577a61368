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
    part = x[..., : cos.shape[-1]]
    return _rotate(x, part, part.roll(cos.shape[-1] // 2, dims=-1), cos, sin)


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of the first R dimensions of x; the others are unchanged.

    The arguments are those of `rotate_half_pairs`, in the order of these pairs.
    """
    part = x[..., : cos.shape[-1]]
    return _rotate(x, part, part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), cos, sin)


def _rotate(x: Tensor, part: Tensor, partners: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated = torch.addcmul(part * cos, partners, sin)
    width = part.shape[-1]
    return rotated if width == x.shape[-1] else torch.cat([rotated, x[..., width:]], dim=-1)
