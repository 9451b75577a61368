"""ALiBi: attention with linear biases (arXiv:2108.12409)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Annotated

from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Constant, Dims
from flagformer.ops.counter import counted
from flagformer.position import DistanceBias


def slopes(heads: int) -> Iterator[float]:
    """Geometric slopes; for counts that are no power of two, every second one of the next power is added."""
    power = 2 ** math.floor(math.log2(heads))
    yield from (2 ** (-8 * (i + 1) / power) for i in range(power))
    yield from (2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (heads - power), 2))


@component("position_bias", select="alibi_pos_bias", paper="arXiv:2108.12409")
class ALiBi(DistanceBias):
    """A penalty that grows with the distance, with its own slope for each head; nothing is learned.

    With `alibi_before_scale` it is added to the products of queries and keys before these are divided by the
    root of the head's width.

    Departure: bidirectional models use -slope * |distance|, which the paper leaves open.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        heads: Annotated[
            int | None, Flag("alibi_num_heads", "heads with a slope, the others get none; None: all", ge=1)
        ] = None,
        before_scale: Annotated[
            bool, Flag("alibi_before_scale", "divides the slopes by sqrt(attn_dim_head), as Falcon")
        ] = False,
    ) -> None:
        super().__init__()
        sloped = dims.heads if heads is None else heads
        if sloped > dims.heads:
            text = f"`alibi_num_heads` must be at most `heads` = {dims.heads}, but is {sloped}"
            raise FlagError([Finding("alibi_num_heads", text)])
        scale = dims.dim_head**-0.5 if before_scale else 1.0
        every = chain((slope * scale for slope in slopes(sloped)), repeat(0.0, dims.heads - sloped))
        self.slopes = Constant(counted(every, dims.heads))

    def forward(self, distance: Tensor) -> Tensor:
        return -distance.abs()[..., None] * self.slopes.on(distance.device)
