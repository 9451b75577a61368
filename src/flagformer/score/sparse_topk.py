"""Sparse attention to the k largest scores (arXiv:1912.11637)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.ops.lengths import spare
from flagformer.score import AttentionNormalizer

# Roundings by which equal scores may differ: sums of products, taken in another order in another shape.
TIE = 32


@component("normalizer", select="attn_sparse_topk", paper="arXiv:1912.11637, section 3", needs={"scores"})
class SparseTopK(AttentionNormalizer):
    """Softmax over the k largest scores of each query, chosen among the keys that it sees.

    Keys that share the k-th score, to rounding, are all kept: equal tokens are, in whatever order they come.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        count: Annotated[int | None, Flag("attn_sparse_topk", "keys k that a query attends to", ge=1)],
    ) -> None:
        super().__init__()
        assert count is not None
        self.count = count
        self.path_changes_at = (count,)

    def forward(self, scores: Tensor) -> Tensor:
        empty = spare(self.count)
        if scores.shape[-1] + empty <= self.count:
            return scores.softmax(dim=-1)
        ranked = F.pad(scores, (0, empty), value=float("-inf")) if empty else scores
        least = ranked.topk(self.count, dim=-1).values[..., -1:]
        least = least - TIE * torch.finfo(scores.dtype).eps * (1 + least.abs())
        return scores.masked_fill(scores < least, float("-inf")).softmax(dim=-1)
