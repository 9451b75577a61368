"""No input mixing, the default."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flags import component
from flagformer.flow import DecodeState, Dims, SideInputs
from flagformer.input_mixer import InputMixer


@component("input_mixer")
class Identity(InputMixer):
    """Returns the input unchanged."""

    def __init__(self, dims: Dims) -> None:
        pass

    def __call__(self, x: Tensor, side: SideInputs) -> Tensor:
        return x

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> None:
        return None
