"""The output projection (1706.03762, section 3.2.2), and attention on attention (1908.06954)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.output import Output
from flagformer.flags import component
from flagformer.flow import Dims


@component("output", paper="arXiv:1706.03762, section 3.2.2")
class Project(nn.Linear, Output):
    """One projection of all heads, without bias."""

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims.heads * dims.dim_value, dims.dim, bias=False)


@component("output", select="attn_on_attn", paper="arXiv:1908.06954, section 3.1")
class AttentionOnAttention(nn.Linear, Output):
    """A second half of the projection gates the first, by its sigmoid.

    Departure: the paper's gate also reads the query; this one reads what the heads found.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims.heads * dims.dim_value, 2 * dims.dim, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.glu(F.linear(input, self.weight), dim=-1)
