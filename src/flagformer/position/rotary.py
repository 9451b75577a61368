"""Rotary position embedding (arXiv:2104.09864), with interpolation (2306.15595) and base rescale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Constant, Dims, Layout
from flagformer.ops.counter import counted
from flagformer.ops.rotate import rotate_half_pairs
from flagformer.position import CosSin, Rotation

BASE = 10000.0
Rotated = Annotated[int | None, Flag("rotary_emb_dim", "dims of a head that are turned; None: all", ge=2)]
Interpolation = Annotated[
    float, Flag("rotary_interpolation_factor", "divides positions (2306.15595)", ge=1e-6)
]
Rescale = Annotated[
    float, Flag("rotary_base_rescale_factor", "multiplies the base by factor ** (R / (R - 2))", ge=1e-6)
]


@component("rotation", select="rotary_pos_emb", paper="arXiv:2104.09864")
class Rotary(Rotation):
    """Turns pairs of dimensions of q and k by angles that grow with the position.

    Pairs are (i, i + R/2), the layout of most published weights, where the paper pairs neighbours: the same
    function up to a permutation of the projections. Angles are fp32 whatever the model's dtype.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        rotated: Rotated = None,
        interpolation: Interpolation = 1.0,
        rescale: Rescale = 1.0,
    ) -> None:
        super().__init__()
        width = dims.dim_head if rotated is None else rotated
        if width % 2 or width > dims.dim_head:
            name = "attn_dim_head" if rotated is None else "rotary_emb_dim"
            text = (
                f"`{name}` must be even and at most the {dims.dim_head} dims of a head under `rotary_pos_emb`"
            )
            raise FlagError([Finding(name, f"{text}, but is {width}")])
        self.width = width
        # at R = 2 there is one frequency, 1, whatever the base
        base = BASE * rescale ** (width / (width - 2)) if width > 2 else BASE
        # twice, as `rotate_half_pairs` wants its sines
        rates = (sign * base ** (-i / width) / interpolation for sign in (-1, 1) for i in range(0, width, 2))
        self.frequencies = Constant(counted(rates, width))

    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> CosSin:
        turns = layout.positions[:, None, :, None] * self.frequencies.on(
            layout.positions.device
        )  # [1 or B, 1, T, R]
        return turns.cos().to(dtype), turns.sin().to(dtype)

    def queries(self, q: Tensor, angles: CosSin | None) -> Tensor:
        assert angles is not None
        return rotate_half_pairs(q, *angles)

    def keys(self, k: Tensor, angles: CosSin | None) -> Tensor:
        assert angles is not None
        return rotate_half_pairs(k, *angles)

    def both(self, q: Tensor, k: Tensor, angles: CosSin | None) -> Sequence[Tensor]:
        if q.shape[2] > 1:
            return super().both(q, k, angles)
        assert angles is not None
        # one token costs its calls, not its numbers: all heads at once take half the time
        turned = rotate_half_pairs(torch.cat([q, k], dim=1), *angles)
        return turned.split_with_sizes([q.shape[1], k.shape[1]], dim=1)
