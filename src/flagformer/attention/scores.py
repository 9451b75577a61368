"""The written-out way from queries and keys to attention weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flagformer.flow import Pairs
from flagformer.ops.attend import causal_pairs, repeat_kv
from flagformer.ops.identity import as_module
from flagformer.score import AttentionNormalizer, Score, WeightMod


class ScorePipeline(nn.Module):
    """mixes(weights(mods(scale * q k^T) + bias)), over the pairs that may meet."""

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

    def forward(self, q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
        """q [B, H, T, K], k [B, G, seats + S, K] -> [B, H, T, seats + S]; queries without keys get zeros."""
        return self.probs(self.scores(self.qk_logits(q, k), q, k, pairs), pairs)

    def qk_logits(self, q: Tensor, k: Tensor) -> Tensor:
        """The scaled products, before anything else."""
        return (q * self.scale) @ repeat_kv(k, q.shape[1]).mT

    def scores(self, products: Tensor, q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
        """Products -> scores, minus infinity where a pair may not meet."""
        scores = products
        for mod in self.score_mods:
            scores = mod(scores, q, k, pairs)
        if pairs.bias is not None:
            return scores + pairs.bias  # a bias in fp32 is not rounded to half precision: the sum is fp32
        if pairs.causal:
            seen = causal_pairs(scores.shape[-2], scores.shape[-1], scores.device)
            return scores.masked_fill(~seen, float("-inf"))
        return scores if pairs.allowed is None else scores.masked_fill(~pairs.allowed, float("-inf"))

    def probs(self, scores: Tensor, pairs: Pairs) -> Tensor:
        """Scores -> weights."""
        weights = self._weigh(scores, pairs.fully_masked_rows)
        for mix in self.weight_mods:
            weights = mix(weights)
        return weights

    def _weigh(self, scores: Tensor, hidden: Tensor | None) -> Tensor:
        if hidden is None:
            return self.normalizer(scores)
        return self.normalizer(scores.masked_fill(hidden, 0.0)).masked_fill(hidden, 0.0)
