"""Small formulas of attention."""

from __future__ import annotations

import torch
from torch import Tensor


def repeat_groups(x: Tensor, heads: int) -> Tensor:
    """[B, G, S, K] -> [B, H, S, K]: each group serves H / G consecutive heads."""
    groups = x.shape[1]
    return x if groups == heads else x.repeat_interleave(heads // groups, dim=1)


def causal_pairs(queries: int, keys: int, device: torch.device) -> Tensor:
    """[1, 1, T, S] bool, the last query aligned with the last key."""
    pairs = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return pairs.tril(keys - queries)[None, None]
