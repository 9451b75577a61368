"""Cores: which pairs of queries and keys are considered at all."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.flow import KeyValues, SideInputs


class Core(nn.Module, ABC):
    """Contract of the slot `core`, built as `(kernel, path, cross)`."""

    carries = False  # whether scores are handed on to the next sublayer
    makes_z_loss = False  # whether the z-loss is put on the tape where it asks for it

    def reads_distances(self, device: torch.device) -> bool:
        """Whether this forward takes pairs that are said by a table of distances."""
        return False

    @abstractmethod
    def forward(self, q: Tensor, kv: KeyValues, side: SideInputs) -> Tensor:
        """q [B, H, T, K] -> [B, H, T, V]."""
