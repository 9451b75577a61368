"""No relative positions: what stands in the slots when nothing is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flags import component
from flagformer.flow import Dims, Layout
from flagformer.position import CosSin, PositionBias, Rotation


@component("rotation", kind="a")
class NoRotation(Rotation):
    """q and k stay as they are."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()

    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> CosSin | None:
        return None

    def queries(self, q: Tensor, angles: CosSin | None) -> Tensor:
        return q

    def keys(self, k: Tensor, angles: CosSin | None) -> Tensor:
        return k

    def both(self, q: Tensor, k: Tensor, angles: CosSin | None) -> tuple[Tensor, Tensor]:
        return q, k


@component("position_bias")
class NoPositionBias(PositionBias):
    """Scores stay as they are."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()

    def between(self, queries: Layout, keys: Layout) -> None:
        return None

    def decode_table(self, length: int, device: torch.device) -> None:
        return None
