"""Attention whose scores grow with the logarithm of the position (Llama 4; arXiv:2501.19399)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from flagformer.flags import Flag, component
from flagformer.flow import Dims, Layout
from flagformer.position import CosSin
from flagformer.position.none import NoRotation


@component("rotation", select="attn_temperature_floor", paper="arXiv:2501.19399", kind="a")
class LogTemperature(NoRotation):
    """Queries are multiplied by 1 + w log(1 + floor((p + 1) / N)) at position p, and nothing is rotated.

    Departure: the paper learns a factor of log(n), where n is the number of keys; here the factor is fixed
    and grows in steps of N tokens, as in the layers of Llama 4 without a rotation.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        floor: Annotated[
            int | None,
            Flag(
                "attn_temperature_floor",
                "tokens N of a step, from which on scores grow with the logarithm of the position (Llama 4:"
                " 8192)",
                ge=1,
                example=2,
            ),
        ],
        weight: Annotated[
            float,
            Flag("attn_temperature_weight", "factor w of the logarithm", ge=0, example=0.7),
        ] = 0.1,
    ) -> None:
        assert floor is not None
        super().__init__(dims)
        self.floor, self.weight = floor, float(weight)

    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> CosSin:
        """The factor of the queries, [1 or B, 1, T, 1]."""
        steps = (layout.positions + 1).div(self.floor, rounding_mode="floor").float()
        factor = 1 + self.weight * steps.log1p()
        return (factor[:, None, :, None].to(dtype),)

    def queries(self, q: Tensor, angles: CosSin | None) -> Tensor:
        assert angles is not None
        return q * angles[0]

    def both(self, q: Tensor, k: Tensor, angles: CosSin | None) -> tuple[Tensor, Tensor]:
        return self.queries(q, angles), k
