"""Logarithmic buckets of distances (T5, DeBERTa v2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def t5_bucket(distance: Tensor, buckets: int, max_distance: int, causal: bool) -> Tensor:
    """The bucket index of each distance q - k (arXiv:1910.10683, section 2.1).

    The first half of the buckets hold one distance each, the others grow in width up to `max_distance`.
    Bidirectional models use the upper half of the buckets for later keys, which causal models mask.

    Args:
        distance: any shape, long, positive for earlier keys.
    """
    offset = torch.zeros_like(distance)
    if not causal:
        buckets //= 2
        offset = torch.where(distance < 0, buckets, 0)
        distance = distance.abs()
    distance = distance.clamp(min=0)
    exact = buckets // 2
    # fp32 as in the published models, so that distances at a bucket's edge get the same bucket
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def log_bucket(distance: Tensor, span: int, max_distance: int) -> Tensor:
    """The signed bucket of each distance q - k, of DeBERTa v2 (arXiv:2006.03654).

    Distances below span / 2 have a bucket each; later ones share buckets, whose number grows with the
    logarithm of the distance to span - 1 at `max_distance` - 1.

    Args:
        distance: any shape, long.
    """
    middle, size = span // 2, distance.abs()
    # fp32 as in the published models, so that distances at a bucket's edge get the same bucket
    growth = (size.clamp(min=middle).float() / middle).log() / torch.tensor((max_distance - 1) / middle).log()
    far = (growth * (middle - 1)).ceil().long() + middle
    return torch.where(size <= middle, distance, distance.sign() * far)
