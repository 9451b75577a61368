"""Attention to ranges of keys sorted by cluster and time, for long rows on CPU.

Queries and keys are sorted by cluster and time. The keys of a query are then a range of sorted keys, whose
ends are non-decreasing from query to query, so that a block of queries attends to one range. Scores outside
the ranges are not computed.
"""

from __future__ import annotations

from torch import Tensor

from flagformer.attention.kernels.key_ranges.capability import is_supported
from flagformer.attention.kernels.key_ranges.operators import attend_sorted
from flagformer.attention.kernels.key_ranges.ranges import KeyRanges, sorted_key_ranges
from flagformer.ops.full_precision import accum_dtype

__all__ = ["KeyRanges", "attend", "is_supported", "sorted_key_ranges"]


def attend(q: Tensor, k: Tensor, v: Tensor, ranges: KeyRanges, scale: float) -> Tensor:
    """softmax(scale q k^T) v over each query's key range and its own key, where `is_supported`.

    Args:
        q: [B, H, T, K].
        k, v: [B, G, S, K] and [B, G, S, V]; a group serves H / G consecutive heads.

    Returns:
        [B, H, T, V].
    """
    dtype = accum_dtype(q.dtype)
    out: Tensor = attend_sorted(q.to(dtype), k.to(dtype), v.to(dtype), *ranges, scale)[0]
    return out.to(q.dtype)
