"""Rotary position embedding (arXiv:2104.09864), with interpolation (2306.15595) and base rescale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Annotated, Any

import torch
from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Constant, Dims, Layout
from flagformer.ops.counter import counted
from flagformer.ops.rotate import rotate_half_pairs, rotate_neighbours
from flagformer.position import CosSin, Rotation
from flagformer.position.by_length import ByLength
from flagformer.position.rotary_scaling import longer_rates, scaled_rates

BASE = 10000.0
Rotated = Annotated[int | None, Flag("rotary_emb_dim", "dims of a head that are rotated; None: all", ge=2)]
Interpolation = Annotated[
    float, Flag("rotary_interpolation_factor", "divides positions (2306.15595)", ge=1e-6)
]
Rescale = Annotated[
    float, Flag("rotary_base_rescale_factor", "multiplies the base by factor ** (R / (R - 2))", ge=1e-6)
]


@component("rotation", select="rotary_pos_emb", paper="arXiv:2104.09864", kind="a")
class Rotary(Rotation):
    """Turns pairs of dimensions of q and k by angles that grow with the position.

    Pairs are (i, i + R/2), the layout of most published weights, where the paper pairs neighbours, as
    `rotary_interleaved` does: the same function up to a permutation of the projections. Angles are fp32
    whatever the model's dtype.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        rotated: Rotated = None,
        interpolation: Interpolation = 1.0,
        rescale: Rescale = 1.0,
        base: Annotated[
            float,
            Flag("rotary_base", "base of the frequencies, `rope_theta` elsewhere", ge=1.001, example=100.0),
        ] = BASE,
        scaling: Annotated[
            dict[str, Any] | None,
            Flag(
                "rotary_scaling",
                "`rope_type` (linear, dynamic, llama3, yarn, longrope) and its numbers, as in Hugging Face",
                example={"rope_type": "linear", "factor": 3.0},
            ),
        ] = None,
        interleaved: Annotated[
            bool, Flag("rotary_interleaved", "rotates the pairs (2i, 2i + 1), as GPT-J and Cohere")
        ] = False,
    ) -> None:
        super().__init__()
        _refuse_two_scalings(scaling, interpolation, rescale)
        width = dims.dim_head if rotated is None else rotated
        if width % 2 or width > dims.dim_head:
            name = "attn_dim_head" if rotated is None else "rotary_emb_dim"
            text = (
                f"`{name}` must be even and at most the {dims.dim_head} dims of a head under `rotary_pos_emb`"
            )
            raise FlagError([Finding(name, f"{text}, but is {width}")])
        self.width = width
        # at R = 2 there is one frequency, 1, whatever the base
        base = base * rescale ** (width / (width - 2)) if width > 2 else base
        rates, self.factor = scaled_rates(width, base, scaling)
        self.rotate = rotate_neighbours if interleaved else rotate_half_pairs
        self.frequencies = _of_pairs(counted(rates, width), interpolation, interleaved)
        longer = longer_rates(width, base, scaling)
        self.by_length: ByLength | None = None
        if scaling is not None and longer is not None:
            long = _of_pairs(longer, interpolation, interleaved)
            self.by_length = ByLength(long, scaling["original_max_position_embeddings"])

    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> CosSin:
        rates = self.frequencies.on(layout.positions.device)
        if self.by_length is not None:
            rates = self.by_length.choose(rates, layout)[:, None]
        turns = layout.positions[:, None, :, None] * rates  # [1 or B, 1, T, R]
        cos, sin = turns.cos(), turns.sin()
        if self.factor != 1.0:
            cos, sin = cos * self.factor, sin * self.factor
        return cos.to(dtype), sin.to(dtype)

    def queries(self, q: Tensor, angles: CosSin | None) -> Tensor:
        assert angles is not None
        return self.rotate(q, *angles)

    def keys(self, k: Tensor, angles: CosSin | None) -> Tensor:
        assert angles is not None
        return self.rotate(k, *angles)

    def both(self, q: Tensor, k: Tensor, angles: CosSin | None) -> Sequence[Tensor]:
        if q.shape[2] > 1:
            return super().both(q, k, angles)
        assert angles is not None
        # one token costs its calls, not its numbers: all heads at once take half the time
        turned = self.rotate(torch.cat([q, k], dim=1), *angles)
        return turned.split_with_sizes([q.shape[1], k.shape[1]], dim=1)


def _of_pairs(rates: Iterable[float], interpolation: float, interleaved: bool) -> Constant:
    """The rates of both dimensions of each pair, negated for the first."""
    pairs = [(-rate / interpolation, rate / interpolation) for rate in rates]
    return Constant(tuple(chain(*(pairs if interleaved else zip(*pairs)))))


def _refuse_two_scalings(scaling: dict[str, Any] | None, interpolation: float, rescale: float) -> None:
    others = {"rotary_interpolation_factor": interpolation, "rotary_base_rescale_factor": rescale}
    findings = [
        Finding(
            "rotary_scaling",
            f"`rotary_scaling` and `{name}` cannot be combined, because both scale the frequencies; leave one"
            " of them out",
        )
        for name, value in others.items()
        if scaling is not None and value != 1.0
    ]
    if findings:
        raise FlagError(findings)
