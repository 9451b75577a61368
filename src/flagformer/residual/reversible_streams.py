"""Two streams that take turns (RevNet, arXiv:1707.04585): what reversible execution runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.residual import Residual

# Between 512 and 1024 neighbouring numbers are 2 ** -14 apart in fp32, and 2 ** -43 in fp64: a sum with this
# one is rounded to that grid, and as it is taken away again the gradient passes straight through.
GRID = 768.0


class StreamPair(NamedTuple):
    """Both streams; they change places behind each sublayer.

    Attributes:
        read: [B, T, D], what the next sublayer sees.
        write: [B, T, D], what it adds to.
        dtype: of the model; the streams are at least fp32.
    """

    read: Tensor
    write: Tensor
    dtype: torch.dtype


class ReversibleStreams(Residual):
    """Each sublayer reads one stream and adds to the other, `x[i + 1] = x[i - 1] + f(x[i])`; the output is
    their mean.

    Streams of a model in half precision are kept in fp32: a sum taken apart is as right as its rounding.

    Args:
        exact: what is added is rounded to multiples of 2 ** -14 in fp32 (2 ** -43 in fp64), straight through
            for gradients: then the sums of numbers below 1024 have no rounding, and take apart to the bit.
    """

    def __init__(self, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact

    def open(self, x: Tensor) -> StreamPair:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        stream = self._rounded(wide)
        return StreamPair(stream, stream, x.dtype)

    def read(self, h: StreamPair, module: int) -> Tensor:
        return h.read.to(h.dtype)

    def write(self, h: StreamPair, out: Tensor, module: int) -> StreamPair:
        return StreamPair(h.write + self._rounded(out.to(h.read.dtype)), h.read, h.dtype)

    def apply_norm(self, h: StreamPair, norm: Callable[[Tensor], Tensor]) -> StreamPair:
        return h

    def close(self, h: StreamPair, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(((h.read + h.write) * 0.5).to(h.dtype))

    def _rounded(self, x: Tensor) -> Tensor:
        return (x + GRID) - GRID if self.exact else x
