"""No norm (1706.03762), cosine similarity (2010.04245), RMS norm per head (2302.05442)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.qk_norm import QKNorm
from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.norm.rmsnorm import shortest, unit_rms


@component("qk_norm", paper="arXiv:1706.03762, section 3.2.1")
class Plain(QKNorm):
    """Dot products, scaled by K ** -0.5."""

    def __init__(self, dims: Dims, groups: int) -> None:
        super().__init__()
        self.scale = dims.dim_head**-0.5

    def queries(self, q: Tensor) -> Tensor:
        return q

    def keys(self, k: Tensor) -> Tensor:
        return k


@component("qk_norm", select="attn_qk_norm", paper="arXiv:2010.04245")
class Cosine(QKNorm):
    """q and k have unit length; a fixed factor replaces K ** -0.5 (the paper learns it)."""

    def __init__(
        self,
        dims: Dims,
        groups: int,
        *,
        factor: Annotated[
            float, Flag("attn_qk_norm_scale", "what cosines are multiplied by", least=1e-6)
        ] = 10.0,
    ) -> None:
        super().__init__()
        self.scale = float(factor)

    def queries(self, q: Tensor) -> Tensor:
        return F.normalize(q, dim=-1, eps=shortest(q))

    def keys(self, k: Tensor) -> Tensor:
        return F.normalize(k, dim=-1, eps=shortest(k))


@component("qk_norm", select="attn_qk_rmsnorm", paper="arXiv:2302.05442, section 2")
class RMS(QKNorm):
    """q and k have unit root mean square and a learned gain per head and dimension.

    Departure: RMSNorm where the paper has LayerNorm, as later models do.
    """

    def __init__(self, dims: Dims, groups: int) -> None:
        super().__init__()
        self.scale = dims.dim_head**-0.5
        self.q_gain = nn.Parameter(torch.ones(dims.heads, 1, dims.dim_head))
        self.k_gain = nn.Parameter(torch.ones(groups, 1, dims.dim_head))

    def queries(self, q: Tensor) -> Tensor:
        return q * (unit_rms(q) * self.q_gain)

    def keys(self, k: Tensor) -> Tensor:
        return k * (unit_rms(k) * self.k_gain)
