"""Outputs: how the heads' findings become what a sublayer adds to the stream."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Output(ABC):
    """Contract of the slot `output`, built as `(dims)`; a module whose `weight` is its last projection."""

    weight: Tensor

    @abstractmethod
    def __call__(self, heads: Tensor) -> Tensor:
        """[B, T, H * V] -> [B, T, D]."""
