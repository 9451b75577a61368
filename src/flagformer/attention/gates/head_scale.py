"""A learned gain per head (NormFormer, arXiv:2110.09456)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.attention.gates import Gate
from flagformer.flags import component
from flagformer.flow import Dims


@component("gate", select="attn_head_scale", paper="arXiv:2110.09456, section 2.1")
class HeadScale(Gate):
    """Multiplies the output of each head by a learned number, initially one."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dims.heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def init_neutral(self) -> float:
        self.reset_parameters()
        return 1.0

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        return out * self.weight
