"""Stochastic depth (arXiv:1603.09382)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from flagformer.branch import Branch
from flagformer.flags import Flag, component
from flagformer.flow import Dims


@component("branch", select="layer_dropout", paper="arXiv:1603.09382")
class StochasticDepth(Branch):
    """Skip the sublayer with a given probability, per row, in training only.

    Departures: rows are drawn independently and kept outputs are divided by 1 - p in training, where the
    paper draws once per batch and scales at test time. The mean is the same, and one compiled graph serves
    all draws. Random numbers come from torch's default generator.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        rate: Annotated[
            float, Flag("layer_dropout", "probability that a row skips the sublayer", ge=0, lt=1)
        ],
    ) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, out: Tensor) -> Tensor:
        if not self.training:
            return out
        drawn = torch.rand(out.shape[0], 1, 1, device=out.device)
        return out * ((drawn >= self.rate).to(out.dtype) / (1 - self.rate))
