"""Softmax over the keys (arXiv:1706.03762, section 3.2.1)."""

from __future__ import annotations

from torch import Tensor

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.score import AttentionNormalizer


@component("normalizer", paper="arXiv:1706.03762, section 3.2.1")
class Softmax(AttentionNormalizer):
    """Softmax over the keys: weights are positive and sum to one."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()

    def forward(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)
