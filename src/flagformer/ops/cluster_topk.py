"""The balanced selection of routing attention: every centroid selects the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.ops.lengths import clamp_to_length, spare

MASKED = -2.0  # below every cosine
EQUAL = 1e-7  # cosines that differ by less are a tie, as equal tokens differ by their rounding
EPS = 1e-5  # added to the number of clusters that selected a token, as in the published code


class ClusterTopK(NamedTuple):
    """N selections of w tokens each.

    Attributes:
        indices: [B, N, H, w] long, token indices.
        valid: [B, N, H, w] bool, False for padding, where a group has fewer than w tokens.
    """

    indices: Tensor
    valid: Tensor


def cluster_topk(cosines: Tensor, window: int, groups: Sequence[Tensor | None]) -> ClusterTopK:
    """The `window` nearest tokens of each centroid within each group; the first of equal ones.

    Args:
        cosines: [B, H, T, C].
        groups: the candidates of each group, [1 or B, T] bool each; None: all tokens.
    """
    indices, valid = [], []
    length, size = cosines.shape[2], clamp_to_length(window, cosines.shape[2])
    cosines = (cosines / EQUAL).round() * EQUAL
    padding = spare(size)
    for group in groups:
        in_group = cosines if group is None else cosines.masked_fill(~group[:, None, :, None], MASKED)
        if padding:
            in_group = F.pad(in_group, (0, 0, 0, padding), value=MASKED)
        ranked = in_group.sort(dim=2, descending=True, stable=True)
        indices.append(ranked.indices[:, :, :size].clamp(max=length - 1))  # [B, H, w, C]
        valid.append(ranked.values[:, :, :size] > MASKED)
    return ClusterTopK(*(torch.cat(parts, dim=3).permute(0, 3, 1, 2) for parts in (indices, valid)))


def scatter_mean(x: Tensor, indices: Tensor, length: int) -> Tensor:
    """The mean of each token's outputs over the selections that contain it; zeros where there are none.

    Args:
        x: [B, N, H, w, V].
        indices: [B, N, H, w] long, token indices; `length` for padding.

    Returns:
        [B, H, T, V].
    """
    batch, _, heads, _, width = x.shape
    index = indices.transpose(1, 2).flatten(2)[..., None]  # [B, H, N * w, 1]
    sums = x.new_zeros(batch, heads, length + 1, width)
    sums = sums.scatter_add(2, index.expand(-1, -1, -1, width), x.transpose(1, 2).flatten(2, 3))
    counts = x.new_zeros(batch, heads, length + 1, 1).scatter_add(
        2, index, torch.ones_like(index, dtype=x.dtype)
    )
    return (sums / (counts + EPS))[:, :, :length]
