"""The written-out way from queries and keys to attention weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flagformer.flow import Pairs
from flagformer.ops.attend import causal_pairs, repeat_groups
from flagformer.score import Score, Weights


class ScorePath(nn.Module):
    """weights(mods(scale * q k^T) + bias), over the pairs that may meet."""

    def __init__(self, scale: float, mods: Sequence[Score], weights: Weights) -> None:
        super().__init__()
        self.scale = scale
        self.mods = nn.ModuleList(mods)
        self.weights = weights

    def forward(self, q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
        """q [B, H, T, K], k [B, G, seats + S, K] -> [B, H, T, seats + S]; queries without keys get zeros."""
        scores = (q * self.scale) @ repeat_groups(k, q.shape[1]).mT
        for mod in self.mods:
            scores = mod(scores, q, k, pairs)
        if pairs.bias is not None:
            scores = scores + pairs.bias.to(scores.dtype)
        elif pairs.causal:
            scores = scores.masked_fill(
                ~causal_pairs(scores.shape[-2], scores.shape[-1], scores.device), float("-inf")
            )
        elif pairs.visible is not None:
            scores = scores.masked_fill(~pairs.visible, float("-inf"))
        if pairs.hidden is None:
            return self.weights(scores)
        return self.weights(scores.masked_fill(pairs.hidden, 0.0)).masked_fill(pairs.hidden, 0.0)
