"""Dynamic position bias: a small network of the distance (arXiv:2108.00154; log distance: 2111.09883)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.norm.layernorm import LayerNorm
from flagformer.ops.full_precision import no_autocast
from flagformer.position import DistanceBias


@component("position_bias", select="dynamic_pos_bias", paper="arXiv:2108.00154", needs={"learned_bias"})
class Dynamic(DistanceBias):
    """A perceptron maps each distance to a number per head; shared by all layers, of width D / 4."""

    def __init__(
        self,
        dims: Dims,
        *,
        log_distance: Annotated[
            bool, Flag("dynamic_pos_bias_log_distance", "the network sees sign(d) * log(|d| + 1)")
        ] = False,
        depth: Annotated[int, Flag("dynamic_pos_bias_mlp_depth", "hidden layers", least=1)] = 2,
        norm: Annotated[bool, Flag("dynamic_pos_bias_norm", "LayerNorm in each hidden layer")] = False,
    ) -> None:
        super().__init__()
        hidden = max(dims.dim // 4, 1)
        widths = [1] + [hidden] * depth
        layers = [
            nn.Sequential(nn.Linear(before, after), LayerNorm(after) if norm else nn.Identity(), nn.SiLU())
            for before, after in pairwise(widths)
        ]
        self.hidden, self.out = nn.Sequential(*layers), nn.Linear(hidden, dims.heads)
        self.log_distance = log_distance

    def values(self, distance: Tensor) -> Tensor:
        seen = distance.to(torch.promote_types(self.out.weight.dtype, torch.float32))
        if self.log_distance:
            seen = seen.sign() * (seen.abs() + 1).log()
        # in bf16 the distances 256 and 257 would be one number
        with no_autocast(distance.device):
            return _in_dtype_of(_in_dtype_of(seen[..., None], self.hidden), self.out)


def _in_dtype_of(x: Tensor, network: nn.Module) -> Tensor:
    """What the network says of x when its parameters have the dtype of x."""
    parameters = {name: parameter.to(x.dtype) for name, parameter in network.named_parameters()}
    return torch.func.functional_call(network, parameters, (x,))
