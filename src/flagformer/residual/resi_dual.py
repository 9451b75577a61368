"""ResiDual: a post-norm and a pre-norm stream in parallel (arXiv:2304.14802)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.residual import Residual

Streams = tuple[Tensor, Tensor]


@component("residual", select="resi_dual", paper="arXiv:2304.14802, section 3.2", needs={"stream"})
class ResiDual(Residual):
    """A post-norm stream that sublayers read, plus a stream of plain sums that is added at the end."""

    def __init__(
        self,
        dims: Dims,
        modules: int,
        *,
        scale: Annotated[
            float,
            Flag("resi_dual_scale", "scale of the second stream, against overflow in fp16", ge=1e-6),
        ] = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale

    def open(self, x: Tensor) -> Streams:
        return x, x * self.scale

    def read(self, h: Streams, module: int) -> Tensor:
        return h[0]

    def write(self, h: Streams, out: Tensor, module: int) -> Streams:
        return h[0] + out, torch.add(h[1], out, alpha=self.scale)

    def apply_norm(self, h: Streams, norm: Callable[[Tensor], Tensor]) -> Streams:
        return norm(h[0]), h[1]

    def close(self, h: Streams, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return h[0] + norm(h[1])
