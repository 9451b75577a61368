"""Output projections of attention."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Output(ABC):
    """Contract of the slot `output`, built as `(dims)`."""

    @property
    @abstractmethod
    def last(self) -> nn.Linear:
        """The projection that initialisations of the output (slot `init`) change."""

    @abstractmethod
    def __call__(self, heads: Tensor) -> Tensor:
        """[B, T, H * V] -> [B, T, D]."""
