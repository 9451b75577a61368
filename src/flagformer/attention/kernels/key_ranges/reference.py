"""Attention to key ranges in plain torch, over all pairs: tests compare both."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.attention.kernels.key_ranges.ranges import KeyRanges
from flagformer.ops.attend import repeat_kv


def attend(q: Tensor, k: Tensor, v: Tensor, ranges: KeyRanges, scale: float) -> Tensor:
    """softmax(scale q k^T) v over each query's key range and its own key."""
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    rank = ranges.by_key.argsort(dim=2)[:, :, None]  # of each key among the sorted ones
    order = ranges.by_query.argsort(dim=2)  # of each query
    start, end = (x.gather(2, order)[..., None] for x in (ranges.start, ranges.end))
    in_range = (rank >= start) & (rank < end)
    queries, keys = (torch.arange(x.shape[2], device=x.device) for x in (q, k))
    own = queries[:, None] + ranges.self_offset == keys
    if ranges.mask_self_unless_alone:
        own = own & ~in_range.any(dim=-1, keepdim=True)
    scores = (scale * q @ k.mT).masked_fill(~(in_range | own), float("-inf"))
    return scores.softmax(dim=-1) @ v
