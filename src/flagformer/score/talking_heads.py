"""Talking heads (arXiv:2003.02436): heads are mixed before and after the softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.flow import AttentionBias, Dims
from flagformer.ops.sharded import laid_out
from flagformer.score import Score, WeightMod

NAME, PAPER = "attn_talking_heads", "arXiv:2003.02436, section 3"
NEEDS = {"scores", "same_keys"}


class HeadMixing(nn.Module):
    """[B, H, T, S] -> [B, H, T, S]: each head becomes a learned sum of all heads; initially the identity."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(laid_out(torch.eye(len(self.weight)), self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("gh,bhts->bgts", self.weight.to(x.dtype), x)


@component("score", select=NAME, paper=PAPER, needs=NEEDS)
class TalkingScores(Score):
    """Scores of each head are a learned sum of the scores of all heads."""

    reads_heads = False

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.exchange = HeadMixing(dims.heads)

    def init_neutral(self) -> float:
        self.exchange.reset_parameters()
        return 1.0

    def forward(self, scores: Tensor, q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
        return self.exchange(scores)


@component("weight_mod", select=NAME, paper=PAPER, needs=NEEDS)
class TalkingWeights(WeightMod):
    """Attention weights of each head are a learned sum of the weights of all heads."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.exchange = HeadMixing(dims.heads)

    def init_neutral(self) -> float:
        self.exchange.reset_parameters()
        return 1.0

    def forward(self, weights: Tensor) -> Tensor:
        return self.exchange(weights)
