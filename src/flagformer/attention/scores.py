"""Attention weights from queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flagformer.flow import AttentionBias
from flagformer.ops.attend import repeat_kv
from flagformer.ops.identity import as_module
from flagformer.score import AttentionNormalizer, Score, WeightMod


class ScorePipeline(nn.Module):
    """weight_mods(normalizer(score_mods(scale * q k^T) + bias)), over the allowed pairs."""

    def __init__(
        self,
        scale: float,
        mods: Sequence[Score],
        weights: AttentionNormalizer,
        mixes: Sequence[WeightMod] = (),
    ) -> None:
        super().__init__()
        self.scale = scale
        self.score_mods = nn.ModuleList(map(as_module, mods))
        self.normalizer = weights
        self.weight_mods = nn.ModuleList(map(as_module, mixes))

    def forward(self, q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
        """q [B, H, T, K], k [B, G, P + S, K] -> [B, H, T, P + S]; queries without keys get zeros."""
        return self.probs(self.scores(self.qk_logits(q, k), q, k, bias), bias)

    def qk_logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Return scale * q k^T."""
        return (q * self.scale) @ repeat_kv(k, q.shape[1]).mT

    def scores(self, logits: Tensor, q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
        """Apply score modifications, position bias and mask: minus infinity where a query may not attend."""
        scores = logits
        for mod in self.score_mods:
            scores = mod(scores, q, k, bias)
        allowed, added, _ = bias.dense()
        if added is not None:
            return scores + added  # a bias in fp32 is not rounded to half precision: the sum is fp32
        return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))

    def probs(self, scores: Tensor, bias: AttentionBias) -> Tensor:
        """Scores -> attention weights."""
        weights = self._normalize(scores, bias.dense().fully_masked_rows)
        for mix in self.weight_mods:
            weights = mix(weights)
        return weights

    def _normalize(self, scores: Tensor, masked_rows: Tensor | None) -> Tensor:
        if masked_rows is None:
            return self.normalizer(scores)
        return self.normalizer(scores.masked_fill(masked_rows, 0.0)).masked_fill(masked_rows, 0.0)
