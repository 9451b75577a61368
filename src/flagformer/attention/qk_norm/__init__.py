"""Norms of queries and keys, before their product."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class QKNorm(nn.Module, ABC):
    """Contract of the slot `qk_norm`, built as `(dims, groups)`; `scale` multiplies q k^T.

    `after_rotation`: whether queries and keys are normed after their rotation, in place of before.
    """

    scale: float
    after_rotation: bool = False

    @abstractmethod
    def queries(self, q: Tensor) -> Tensor:
        """[B, H, T, K] -> [B, H, T, K]."""

    @abstractmethod
    def keys(self, k: Tensor) -> Tensor:
        """[B, G, S, K] -> [B, G, S, K]; prefix keys [G, M, K] -> [G, M, K]."""
