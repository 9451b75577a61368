"""The balanced selection of routing attention: every centroid picks the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.ops.lengths import clamp_to_length, spare

NOBODY = -2.0  # below every cosine
EQUAL = 1e-7  # cosines that differ by less are a tie, as equal tokens differ by their rounding
EMPTY = 1e-5  # beside the number of clusters that picked a token, as in the published code


class ClusterTopK(NamedTuple):
    """N elections of w tokens each.

    Attributes:
        numbers: [B, N, H, w] long, the tokens.
        real: [B, N, H, w] bool, False where a group has fewer.
    """

    numbers: Tensor
    real: Tensor


def cluster_topk(cosines: Tensor, window: int, groups: Sequence[Tensor | None]) -> ClusterTopK:
    """Each centroid picks the `window` nearest tokens of each group, the first of equal ones.

    Args:
        cosines: [B, H, T, C].
        groups: who stands for election together, [1 or B, T] bool each; None: everybody.
    """
    numbers, real = [], []
    length, size = cosines.shape[2], clamp_to_length(window, cosines.shape[2])
    cosines = (cosines / EQUAL).round() * EQUAL
    empty = spare(size)
    for group in groups:
        of_group = cosines if group is None else cosines.masked_fill(~group[:, None, :, None], NOBODY)
        if empty:
            of_group = F.pad(of_group, (0, 0, 0, empty), value=NOBODY)
        best = of_group.sort(dim=2, descending=True, stable=True)
        numbers.append(best.indices[:, :, :size].clamp(max=length - 1))  # [B, H, w, C]
        real.append(best.values[:, :, :size] > NOBODY)
    return ClusterTopK(*(torch.cat(parts, dim=3).permute(0, 3, 1, 2) for parts in (numbers, real)))


def scatter_mean(x: Tensor, numbers: Tensor, length: int) -> Tensor:
    """What each token is given by those that picked it, on average; zeros where nobody did.

    Args:
        x: [B, N, H, w, V].
        numbers: [B, N, H, w] long, whose each is; `length` for nobody's.

    Returns:
        [B, H, T, V].
    """
    batch, _, heads, _, width = x.shape
    index = numbers.transpose(1, 2).flatten(2)[..., None]  # [B, H, N * w, 1]
    sums = x.new_zeros(batch, heads, length + 1, width)
    sums = sums.scatter_add(2, index.expand(-1, -1, -1, width), x.transpose(1, 2).flatten(2, 3))
    counts = x.new_zeros(batch, heads, length + 1, 1).scatter_add(
        2, index, torch.ones_like(index, dtype=x.dtype)
    )
    return (sums / (counts + EMPTY))[:, :, :length]
