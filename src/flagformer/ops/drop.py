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


def forgetful_causal_mask(real: Tensor, places: Tensor, hidden: float) -> Tensor:
    """[B, 1, T, T] bool, which keys may be seen: each row hides a share of its tokens but first ones.

    Args:
        real: [B, T] bool.
        places: [1 or B, T], each token's place in its sequence; those at 0, and the first real token of a
            row, stay visible, so that every token sees one.
        hidden: the share of the other real tokens that is hidden, rounded up.
    """
    first = (places == 0) | (real & (real.cumsum(dim=-1) == 1))
    others = real & ~first
    seen = first | keep_some(others, 1 - hidden) | ~real
    return seen[:, None, None].expand(-1, -1, real.shape[1], -1)
