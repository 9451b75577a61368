"""From scores to attention weights: score modifications, normalizers and weight modifications."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import AttentionBias


class Score(nn.Module, ABC):
    """Contract of the slot `score`, built as `(dims)`: changes scaled scores before bias and mask.

    Attributes:
        reads_heads: whether it reads q or k, which then have the widths of the heads.
    """

    reads_heads = True

    @abstractmethod
    def forward(self, scores: Tensor, q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
        """scores [B, H, T, P + S] with P prefix keys -> the same shape."""


class AttentionNormalizer(nn.Module, ABC):
    """Contract of the slot `normalizer`, built as `(dims)`: turns scores into attention weights."""

    @abstractmethod
    def forward(self, scores: Tensor) -> Tensor:
        """scores [B, H, T, S], -inf where attention is not allowed -> attention weights."""


class WeightMod(nn.Module, ABC):
    """Contract of the slot `weight_mod`, built as `(dims)`: changes attention weights."""

    @abstractmethod
    def forward(self, weights: Tensor) -> Tensor:
        """weights [B, H, T, P + S], zero where attention is not allowed -> the same shape."""
