"""A learned sink per head (arXiv:2309.17453, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.score import AttentionNormalizer


@component(
    "normalizer", select="attn_head_learned_sink", paper="arXiv:2309.17453, section 3.3", needs={"scores"}
)
class LearnedSink(AttentionNormalizer):
    """Softmax with a learned sink score per head in its denominator: weights sum to less than one.

    Departure: the paper's sink is a learned token; later models use a learned score, as here.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.empty(dims.heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.score)

    def forward(self, scores: Tensor) -> Tensor:
        sink = self.score.to(scores.dtype).expand(*scores.shape[:1], -1, scores.shape[2], 1)  # [B, H, T, 1]
        return torch.cat([sink, scores], dim=-1).softmax(dim=-1)[..., 1:]
