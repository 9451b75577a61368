"""xPos: rotation with a decay of the distance (arXiv:2212.10554)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from flagformer.flags import Flag, Requirement, component
from flagformer.flow import Constant, Dims, Layout
from flagformer.ops.counter import counted
from flagformer.ops.full_precision import lowered
from flagformer.ops.rotate import rotate_half_pairs
from flagformer.position import CosSin, Rotation
from flagformer.position.rotary import Interpolation, Rescale, Rotary, Rotated


@component(
    "rotation",
    select="rotary_xpos",
    kind="a",
    paper="arXiv:2212.10554, section 3.1",
    requires=[Requirement("causal", True, "scores grow with the distance to later keys")],
    lacks={"value_rotation": "keys are divided by its decay, so values would grow with the position"},
)
class XPos(Rotation):
    """Rotation in which a pair's product fades with the distance, fast turning pairs first.

    q is multiplied by zeta ** (position / base) and k divided by it. The origin is position 0 whatever the
    length, so that cached keys stay right; numbers therefore grow with the position, up to a limit that
    follows from the dtype.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        rotated: Rotated = None,
        interpolation: Interpolation = 1.0,
        rescale: Rescale = 1.0,
        base: Annotated[
            int, Flag("rotary_xpos_scale_base", "positions over which the decay is zeta", ge=1)
        ] = 512,
    ) -> None:
        super().__init__()
        self.rotary = Rotary(dims, rotated=rotated, interpolation=interpolation, rescale=rescale)
        self.width = width = self.rotary.width
        self.base, self.strongest = base, _zeta(0, width)
        exponents = (math.log(_zeta(i, width)) / base for i in range(0, width, 2))
        self.exponents = Constant(counted(exponents, width // 2))

    def limit(self, dtype: torch.dtype) -> int:
        """Positions from here on would not fit: q and k each get half of the dtype's powers of two."""
        powers = math.log2(torch.finfo(dtype).max) / 2
        return int(powers * self.base / -math.log2(self.strongest))

    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> CosSin:
        # queries and keys are multiplied in autocast's dtype, where it is on
        low = lowered(layout.positions.device) or dtype
        # padding in front only makes positions smaller than places, so `end` is a bound without a look
        if layout.contiguous_positions and layout.end > self.limit(low):
            text = f"`rotary_xpos` holds {self.limit(low)} positions in {low}, but there are {layout.end}"
            raise ValueError(f"{text}: raise `rotary_xpos_scale_base` (it is {self.base})")
        cos, sin = self.rotary.cos_sin(layout, torch.float32)
        half = (
            layout.positions[:, None, :, None] * self.exponents.on(layout.positions.device)
        ).exp()  # [1 or B, 1, T, R/2]
        decay = torch.cat([half, half], dim=-1)
        return tuple(part.to(dtype) for part in (cos * decay, sin * decay, cos / decay, sin / decay))

    def queries(self, q: Tensor, angles: CosSin | None) -> Tensor:
        assert angles is not None
        return rotate_half_pairs(q, *angles[:2])

    def keys(self, k: Tensor, angles: CosSin | None) -> Tensor:
        assert angles is not None
        return rotate_half_pairs(k, *angles[2:])


def _zeta(i: int, width: int) -> float:
    """What the product of the pair (i, i + R/2) is multiplied by over `base` positions."""
    return (i + 0.4 * width) / (1.4 * width)
