"""Entries: what a sublayer reads, before its function sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flagformer.flow import DecodeState, LayerCache, SideInputs


class InputMixer(ABC):
    """Contract of the slot `entry`, built as `(dims)`: [B, T, D] -> [B, T, D], behind the norm."""

    reads_previous = False  # whether a token is given something of earlier ones

    @abstractmethod
    def __call__(self, x: Tensor, side: SideInputs) -> Tensor: ...

    @abstractmethod
    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> LayerCache | None:
        """What one execution step remembers while decoding; None: nothing."""
