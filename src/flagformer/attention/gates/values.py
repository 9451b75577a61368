"""Gates computed from the sublayer's input: per dimension (2505.06708) or per head (2306.12929)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.gates import Gate
from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.ops.linear import Linear

# sigmoid(2) = 0.88: nearly open, with a gradient in bf16; at 10 the gradient is zero.
OPEN = 2.0


@component("gate", select="attn_gate_values", paper="arXiv:2505.06708, section 2.2")
class ValueGate(Gate):
    """Multiplies each dimension of each head by the sigmoid of a projection of x."""

    def __init__(
        self,
        dims: Dims,
        *,
        swiglu: Annotated[bool, Flag("attn_swiglu_values", "SiLU in place of the sigmoid")] = False,
        bias: Annotated[
            bool, Flag("attn_gate_values_bias", "gate bias, initialised nearly open", neutral=True)
        ] = False,
    ) -> None:
        super().__init__()
        width = dims.heads * dims.dim_value
        self.to_gate = Linear(dims.dim, width, bias=bias, init=_opened if bias else None)
        self.heads, self.activation = dims.heads, F.silu if swiglu else F.sigmoid

    def init_neutral(self) -> float:
        """Start as the same factor for every token: 1/2, or silu(1); 0, without effect on the parameters, if
        the gate is a SiLU without a bias."""
        swiglu = self.activation is F.silu
        if swiglu and self.to_gate.bias is None:
            return 0.0
        nn.init.zeros_(self.to_gate.weight)
        if self.to_gate.bias is not None:
            nn.init.constant_(self.to_gate.bias, 1.0 if swiglu else 0.0)
        return float(F.silu(torch.ones(()))) if swiglu else 0.5

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        gate = self.activation(self.to_gate(x)).unflatten(-1, (self.heads, -1))  # [B, T, H, V]
        return out * gate.transpose(1, 2)


@component("gate", select="attn_gate_value_heads", paper="arXiv:2306.12929, section 4.2")
class HeadGate(Gate):
    """Multiplies each head by the sigmoid of a projection of x; initialised nearly open."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.to_gate = Linear(dims.dim, dims.heads, init=_open_for_all)

    def init_neutral(self) -> float:
        nn.init.zeros_(self.to_gate.weight)
        nn.init.zeros_(self.to_gate.bias)
        return 0.5

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        return out * self.to_gate(x).sigmoid().transpose(1, 2)[..., None]  # [B, H, T, 1]


def _opened(gate: nn.Linear) -> None:
    nn.init.constant_(gate.bias, OPEN)


def _open_for_all(gate: nn.Linear) -> None:
    """Initialise the gate nearly open for every x."""
    nn.init.zeros_(gate.weight)
    _opened(gate)
