"""Cores: which pairs of queries and keys are considered at all."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import KeyValues, SideInputs


class Core(nn.Module, ABC):
    """Contract of the slot `core`, built as `(kernel, path, cross)`."""

    carries = False  # whether scores are handed on to the next sublayer

    @abstractmethod
    def forward(self, q: Tensor, kv: KeyValues, side: SideInputs) -> Tensor:
        """q [B, H, T, K] -> [B, H, T, K]."""
