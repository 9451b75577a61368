"""Tensor-product attention (arXiv:1910.06611)."""

from __future__ import annotations

from torch import Tensor, nn

from flagformer.attention.gates import Gate
from flagformer.flags import component
from flagformer.flow import Dims


@component("gate", select="attn_tensor_product", paper="arXiv:1910.06611")
class TensorProduct(Gate):
    """out + out * role, with a projection of x as the role of each token and head (2208.06061).

    Departure: no bias, and a role for each query head, also with fewer key/value heads.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.heads = dims.heads
        self.to_role = nn.Linear(dims.dim, dims.heads * dims.dim_value, bias=False)

    def init_neutral(self) -> float:
        nn.init.zeros_(self.to_role.weight)
        return 1.0

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        role = self.to_role(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, V]
        return out + out * role
