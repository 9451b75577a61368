"""Logarithmic buckets of distances (T5)."""

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
