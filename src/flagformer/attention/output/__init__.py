"""Outputs: how the heads' findings become what a sublayer adds to the stream."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Output(ABC):
    """Contract of the slot `output`, built as `(dims)`."""

    @property
    @abstractmethod
    def last(self) -> nn.Linear:
        """The projection whose start decides what a sublayer adds at first."""

    @abstractmethod
    def __call__(self, heads: Tensor) -> Tensor:
        """[B, T, H * V] -> [B, T, D]."""
