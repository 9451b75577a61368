"""Leaving tokens out at random."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_some(real: Tensor, share: float) -> Tensor:
    """[B, S] bool, True for a random `share` of each row's True places, rounded down, at least one."""
    wanted = (real.sum(dim=-1, keepdim=True) * share).long().clamp(min=1)
    noise = torch.rand(real.shape, device=real.device).masked_fill(~real, -1.0)
    rank = noise.argsort(dim=-1, descending=True).argsort(dim=-1)
    return real & (rank < wanted)
