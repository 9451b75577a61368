"""Nothing before the function: what stands when nothing is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.entry import Entry
from flagformer.flags import component
from flagformer.flow import DecodeState, Dims, SideInputs


@component("entry")
class Straight(Entry):
    """The function sees what the norm gave."""

    def __init__(self, dims: Dims) -> None:
        pass

    def __call__(self, x: Tensor, side: SideInputs) -> Tensor:
        return x

    def session(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> None:
        return None
