"""Softpick: a rectified softmax whose weights need not sum to one (arXiv:2504.20966, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.score import AttentionNormalizer

EPS = 1e-6


@component("normalizer", select="attn_softpick", paper="arXiv:2504.20966, section 3", needs={"scores"})
class Softpick(AttentionNormalizer):
    """relu(exp(s) - 1) / (sum of |exp(s) - 1| over allowed keys + eps): a query may attend to nothing.

    All exponentials are divided by exp(max(0, largest score)), where the paper divides by exp(largest
    score): the values differ in the share of eps, and rows of very negative scores do not overflow.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__()

    def forward(self, scores: Tensor) -> Tensor:
        shift = scores.detach().amax(dim=-1, keepdim=True).clamp_min(0)
        above = torch.exp(scores - shift) - torch.exp(-shift)
        size = above.abs().masked_fill(scores == float("-inf"), 0).sum(dim=-1, keepdim=True)
        return above.relu() / (size + EPS)
