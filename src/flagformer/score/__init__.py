"""From scores to attention weights: modifiers of the scores, and what turns them into weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import Pairs


class Score(nn.Module, ABC):
    """Contract of the slot `score`, built as `(dims)`: sees scaled scores before the bias and the mask."""

    @abstractmethod
    def forward(self, scores: Tensor, q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
        """scores [B, H, T, seats + S] -> the same shape."""


class AttentionNormalizer(nn.Module, ABC):
    """Contract of the slot `weights`, built as `(dims)`."""

    @abstractmethod
    def forward(self, scores: Tensor) -> Tensor:
        """scores [B, H, T, S], minus infinity where a pair may not meet -> weights."""


class WeightMod(nn.Module, ABC):
    """Contract of the slot `mix`, built as `(dims)`: changes the weights before values are gathered."""

    @abstractmethod
    def forward(self, weights: Tensor) -> Tensor:
        """weights [B, H, T, seats + S], zero where a pair may not meet -> the same shape."""
