"""Keys and values that no token brought: seated in front, seen by every query, without position."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Seats(nn.Module, ABC):
    """Contract of the slot `key_values`, built as `(dims, groups)`; `count` is the number M of seats."""

    count: int

    @abstractmethod
    def entries(self) -> tuple[Tensor, Tensor]:
        """Keys [G, M, K] and values [G, M, V]; the keys are normed like all others."""
