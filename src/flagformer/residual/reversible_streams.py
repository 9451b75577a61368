"""The two residual streams of reversible execution (RevNet, arXiv:1707.04585)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.residual import Residual

# Between 512 and 1024 the spacing of floats is 2 ** -14 in fp32 and 2 ** -43 in fp64: adding this constant
# rounds a number to that grid, subtracting it again restores the number; the gradient is the identity.
GRID = 768.0


class StreamPair(NamedTuple):
    """Both streams; they are swapped after each sublayer.

    Attributes:
        read: [B, T, D], the input of the next sublayer.
        write: [B, T, D], the stream to which its output is added.
        dtype: dtype of the model; the streams are at least fp32.
    """

    read: Tensor
    write: Tensor
    dtype: torch.dtype


class ReversibleStreams(Residual):
    """Each sublayer reads one stream and adds to the other, `x[i + 1] = x[i - 1] + f(x[i])`.

    The output is the mean of both. Streams of a model in half precision are fp32, as subtraction recovers a
    stream up to the rounding of the sum.

    Args:
        exact: round the output of each sublayer to multiples of 2 ** -14 in fp32 (2 ** -43 in fp64), with
            straight-through gradients. Sums of magnitude below 1024 are then exact, and subtraction recovers
            them bit by bit.
    """

    def __init__(self, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact

    def open(self, x: Tensor) -> StreamPair:
        stream = self._rounded(x.to(torch.promote_types(x.dtype, torch.float32)))
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
