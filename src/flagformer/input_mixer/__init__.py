"""Input mixers: transformations of a sublayer's normed input before its function."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flagformer.flow import DecodeState, LayerCache, SideInputs


class InputMixer(ABC):
    """Contract of the slot `input_mixer`, built as `(dims)`: [B, T, D] -> [B, T, D], after the norm."""

    reads_previous = False  # whether the output of a token depends on earlier tokens

    @abstractmethod
    def __call__(self, x: Tensor, side: SideInputs) -> Tensor: ...

    @abstractmethod
    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> LayerCache | None:
        """The cache of one execution step for decoding; None if it needs none."""
