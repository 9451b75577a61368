"""Gates of the attention outputs of heads, before the output projection."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Gate(nn.Module, ABC):
    """Contract of the slot `gate`, built as `(dims)`."""

    @abstractmethod
    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        """out [B, H, T, V], x [B, T, D] -> [B, H, T, V]."""
