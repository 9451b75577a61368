"""LayerScale (arXiv:2103.17239), and the fixed half of macaron feedforwards (1906.02762)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.branch import Branch
from flagformer.flags import Flag, component
from flagformer.flow import Dims


@component("branch", select="use_layerscale", paper="arXiv:2103.17239, section 2")
class LayerScale(Branch):
    """A learned gain per dimension that starts small. It follows a sandwich norm, which would undo it."""

    def __init__(
        self,
        dims: Dims,
        *,
        start: Annotated[float, Flag("layerscale_init_value", "what the gains start at")] = 0.1,
    ) -> None:
        super().__init__()
        self.start = float(start)
        self.weight = nn.Parameter(torch.empty(dims.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.start)

    def forward(self, out: Tensor) -> Tensor:
        return out * self.weight


class HalfStep(Branch):
    """Half of the output, for the two feedforwards of a macaron block (1906.02762)."""

    def forward(self, out: Tensor) -> Tensor:
        return out * 0.5
