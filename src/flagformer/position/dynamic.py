"""Dynamic position bias: a small network of the distance (arXiv:2108.00154; log distance: 2111.09883)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.norm.layernorm import LayerNorm
from flagformer.ops.full_precision import accum_dtype, no_autocast
from flagformer.ops.home import home_of
from flagformer.position import DistanceBias


@component("position_bias", select="dynamic_pos_bias", paper="arXiv:2108.00154", needs={"learned_bias"})
class Dynamic(DistanceBias):
    """A perceptron maps each distance to a number per head; shared by all layers, of width D / 4.

    It computes in fp32 (fp64 in a model in fp64), under autocast and with parameters in half precision too:
    in bf16 the distances 256 and 257 are one number.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        log_distance: Annotated[
            bool, Flag("dynamic_pos_bias_log_distance", "the network sees sign(d) * log(|d| + 1)")
        ] = False,
        depth: Annotated[int, Flag("dynamic_pos_bias_mlp_depth", "hidden layers", ge=1, lt=1000)] = 2,
        norm: Annotated[bool, Flag("dynamic_pos_bias_norm", "LayerNorm in each hidden layer")] = False,
    ) -> None:
        super().__init__()
        hidden = max(dims.dim // 4, 1)
        widths = [1] + [hidden] * depth
        layers = [
            nn.Sequential(WideLinear(before, after), WideNorm(after) if norm else nn.Identity(), nn.SiLU())
            for before, after in pairwise(widths)
        ]
        self.hidden, self.out = nn.Sequential(*layers), WideLinear(hidden, dims.heads)
        self.log_distance = log_distance

    def init_neutral(self) -> float:
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        return 1.0

    def forward(self, distance: Tensor) -> Tensor:
        seen = distance.to(accum_dtype(home_of(self)[1]))
        if self.log_distance:
            seen = seen.sign() * (seen.abs() + 1).log()
        return self.out(self.hidden(seen[..., None]))


class WideLinear(nn.Linear):
    """`nn.Linear` in the dtype of its input, whatever its parameters have, and without autocast's casts."""

    def forward(self, x: Tensor) -> Tensor:
        with no_autocast(x.device):
            return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class WideNorm(LayerNorm):
    """`LayerNorm` in the dtype of its input, as `WideLinear`."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        with no_autocast(x.device):
            return F.layer_norm(x, self.shape, self.weight.to(x.dtype))
