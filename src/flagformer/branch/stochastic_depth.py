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
    """In training, a row skips the sublayer with this probability.

    Departures: each row draws for itself, and what is kept is divided by 1 - p in training, where the paper
    draws once for the batch and scales at test time: the same mean, one compiled graph. The draws come from
    torch's generator, so `torch.manual_seed` fixes them.
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
        draws = torch.rand(out.shape[0], 1, 1, device=out.device)
        return out * ((draws >= self.rate).to(out.dtype) / (1 - self.rate))
