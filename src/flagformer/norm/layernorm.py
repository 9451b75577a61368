"""LayerNorm (arXiv:1607.06450)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.norm import Norm
from flagformer.norm.rmsnorm import Eps, WeightOffset

DEFAULT_EPS = 1e-5


@component("norm", paper="arXiv:1607.06450")
class LayerNorm(Norm):
    """Zero mean and unit variance, with a learned weight per dimension.

    Departure from the paper: no bias by default, as the projection that follows can represent it.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: Eps = None,
        weight: Annotated[
            bool, Flag("norm_weight", "a learned weight in each LayerNorm; False: none (OLMo 1)")
        ] = True,
        bias: Annotated[bool, Flag("norm_bias", "a learned bias in each LayerNorm", neutral=True)] = False,
        offset: WeightOffset = 0.0,
    ) -> None:
        super().__init__()
        _refuse_offset_alone(weight, float(offset))
        self.shape = (dim,)
        self.eps, self.offset = DEFAULT_EPS if eps is None else float(eps), float(offset)
        self.weight = nn.Parameter(torch.empty(dim)) if weight else None
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, 1 - self.offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight is None or not self.offset else self.weight + self.offset
        if weight is None and self.bias is not None:
            # torch 2.13 has no right second derivative of a bias without a weight
            return F.layer_norm(x, self.shape, None, None, self.eps) + self.bias
        return F.layer_norm(x, self.shape, weight, self.bias, self.eps)


def _refuse_offset_alone(weight: bool, offset: float) -> None:
    if offset and not weight:
        text = "`norm_weight_offset` and `norm_weight=False` cannot be combined, because there is no weight"
        raise FlagError([Finding("norm_weight_offset", f"{text} to add it to; leave one of them out")])
