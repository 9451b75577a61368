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

# Rounding errors by which equal scores may differ: the order of a sum depends on the shape.
TIE = 32


@component("normalizer", select="attn_sparse_topk", paper="arXiv:1912.11637, section 3", needs={"scores"})
class SparseTopK(AttentionNormalizer):
    """Softmax over the k largest scores of each query, among the keys that the mask allows.

    All keys whose score equals the k-th up to rounding are kept, so that the order of equal tokens does not
    matter.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        count: Annotated[
            int | None, Flag("attn_sparse_topk", "number k of keys that a query attends to", ge=1)
        ],
    ) -> None:
        super().__init__()
        assert count is not None
        self.count = count
        self.path_changes_at = (count,)

    def forward(self, scores: Tensor) -> Tensor:
        padding = spare(self.count)
        if scores.shape[-1] + padding <= self.count:
            return scores.softmax(dim=-1)
        ranked = F.pad(scores, (0, padding), value=float("-inf")) if padding else scores
        threshold = ranked.topk(self.count, dim=-1).values[..., -1:]
        threshold = threshold - TIE * torch.finfo(scores.dtype).eps * (1 + threshold.abs())
        return scores.masked_fill(scores < threshold, float("-inf")).softmax(dim=-1)
