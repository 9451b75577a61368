"""Scales of a branch: learned (arXiv:2103.17239), fixed (2408.13359), half-step of macaron (1906.02762)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.branch import Branch
from flagformer.flags import Flag, component
from flagformer.flow import Dims


@component("branch", select="use_layerscale", paper="arXiv:2103.17239, section 2")
class LayerScale(Branch):
    """A learned scale per dimension with a small initial value, applied after the sandwich norm."""

    def __init__(
        self,
        dims: Dims,
        *,
        init_value: Annotated[float, Flag("layerscale_init_value", "initial value of the scales")] = 0.1,
    ) -> None:
        super().__init__()
        self.init_value = float(init_value)
        self.weight = nn.Parameter(torch.empty(dims.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.init_value)

    def init_neutral(self) -> float:
        nn.init.ones_(self.weight)
        return 1.0

    def forward(self, out: Tensor) -> Tensor:
        return out * self.weight


@component("branch", select="residual_scale", paper="arXiv:2408.13359")
class BranchScale(Branch):
    """The output of each sublayer times a fixed number, before the residual sum (Granite, MiniCPM)."""

    def __init__(
        self,
        dims: Dims,
        *,
        scale: Annotated[
            float, Flag("residual_scale", "factor of the output of each sublayer", ge=1e-6, example=0.5)
        ],
    ) -> None:
        super().__init__()
        self.scale = float(scale)

    def forward(self, out: Tensor) -> Tensor:
        return out * self.scale


class HalfStep(Branch):
    """The output times 0.5, for the two feedforwards of a macaron block (1906.02762)."""

    def forward(self, out: Tensor) -> Tensor:
        return out * 0.5
