"""Pruning of distances whose weights are lost in rounding: a steep bias limits a head to nearby keys.

Without pruning they cost twice: whole chunks of keys are computed, and denormal numbers (below 1e-38) are
multiplied a hundred times slower. With ALiBi at n 2048 these were three quarters of the backward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def prune_bias(
    biases: Tensor, q: Tensor, k: Tensor, at_self: int, scale: float, dtype: torch.dtype
) -> Tensor:
    """Biases [H, L] with minus infinity where every weight is negligible.

    The pruned weights of a query sum to less than `dtype`'s eps: a query attends to itself with a score of at
    least `bias[at_self] - bound`, and no score exceeds `bias + bound`, where `bound` is the product of the
    largest norms of a query and a key (Cauchy and Schwarz). Padding does not attend to itself and may have
    all of its weights pruned.

    Args:
        biases: by distance.
        q, k: [B, H, T, K], [B, H, S, K].
        at_self: the index of the distance of a query to itself.
        scale: of the products.
        dtype: the accumulation dtype.
    """
    norms = [torch.linalg.vector_norm(x, dim=-1, dtype=dtype).amax(dim=(0, 2)) for x in (q, k)]
    score_bound = abs(scale) * norms[0] * norms[1]  # [H]
    margin = math.log(k.shape[2] / torch.finfo(dtype).eps)
    floor = biases[:, at_self] - 2 * score_bound - margin
    return biases.masked_fill(biases < floor[:, None], float("-inf"))


def group_heads(biases: Tensor, min_heads: int) -> list[tuple[slice, slice]]:
    """Slices of neighbouring heads with a similar range of distances, and these ranges.

    Args:
        biases: [H, L], minus infinity where masked.
        min_heads: heads of a group, enough to keep all threads busy; a remainder joins the group before it.
    """
    allowed = biases > float("-inf")
    index = torch.arange(allowed.shape[1])
    starts = torch.where(allowed, index, allowed.shape[1]).amin(dim=1).tolist()
    ends = torch.where(allowed, index, -1).amax(dim=1).tolist()
    groups: list[tuple[slice, slice]] = []
    for first in range(0, len(starts), min_heads):
        heads = slice(first, first + min_heads)
        distances = slice(min(starts[heads]), max(ends[heads]) + 1)
        if groups and (len(starts) - first < min_heads or _similar(groups[-1][1], distances)):
            last_heads, last_distances = groups.pop()
            heads = slice(last_heads.start, first + min_heads)
            distances = slice(
                min(last_distances.start, distances.start), max(last_distances.stop, distances.stop)
            )
        groups.append((heads, distances))
    return groups


def _similar(one: slice, other: slice) -> bool:
    """Whether separate calls would save less than a quarter of one."""
    counts = sorted([one.stop - one.start, other.stop - other.start])
    return counts[0] * 4 > counts[1] * 3
