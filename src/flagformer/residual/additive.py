"""x + f(x) (arXiv:1512.03385)."""

from __future__ import annotations

from torch import Tensor

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.residual import Residual


@component("residual", paper="arXiv:1512.03385")
class Additive(Residual):
    """Each sublayer adds to the stream."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()

    def open(self, x: Tensor) -> Tensor:
        return x

    def read(self, h: Tensor, step: int) -> Tensor:
        return h

    def write(self, h: Tensor, out: Tensor, step: int) -> Tensor:
        return h + out

    def close(self, h: Tensor) -> Tensor:
        return h
