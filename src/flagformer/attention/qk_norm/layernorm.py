"""LayerNorm of queries and keys (arXiv:2302.05442)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.qk_norm import QKNorm
from flagformer.attention.qk_norm.norms import Scale
from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.norm.layernorm import DEFAULT_EPS


@component("qk_norm", select="attn_qk_layernorm", paper="arXiv:2302.05442, section 2", needs={"head_keys"})
class LayerQKNorm(QKNorm):
    """LayerNorm over the dimensions of each head of q and k, with learned weights (ViT-22B, Cohere)."""

    def __init__(
        self,
        dims: Dims,
        groups: int,
        *,
        weight: Annotated[
            str,
            Flag(
                "attn_qk_layernorm_weight",
                "a learned weight per head and dimension (StableLM, Cohere), or one per dimension for all"
                " heads (Phi, Persimmon)",
                choices=("head", "shared"),
                example="shared",
            ),
        ] = "head",
        bias: Annotated[
            bool, Flag("attn_qk_layernorm_bias", "a learned bias for each weight", neutral=True)
        ] = False,
        eps: Annotated[
            float,
            Flag("attn_qk_layernorm_eps", "added to the variance", ge=1e-12, lt=1, example=0.25),
        ] = DEFAULT_EPS,
        scale: Scale = None,
    ) -> None:
        super().__init__()
        self.scale = dims.dim_head**-0.5 if scale is None else float(scale)
        self.q_norm = HeadNorm(dims.heads if weight == "head" else 1, dims.dim_head, bias, eps)
        self.k_norm = HeadNorm(groups if weight == "head" else 1, dims.dim_head, bias, eps)

    def queries(self, q: Tensor) -> Tensor:
        normed: Tensor = self.q_norm(q)
        return normed

    def keys(self, k: Tensor) -> Tensor:
        normed: Tensor = self.k_norm(k)
        return normed


class HeadNorm(nn.Module):
    """LayerNorm of the last dimension: [..., H, T, K] -> [..., H, T, K], with weights [H or 1, 1, K]."""

    def __init__(self, heads: int, width: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.eps = float(eps)
        self.weight = nn.Parameter(torch.empty(heads, 1, width))
        self.bias = nn.Parameter(torch.empty(heads, 1, width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight
        return normed if self.bias is None else normed + self.bias
