"""torch's fused attention (FlashAttention, arXiv:2205.14135)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flagformer.attention.kernels import Kernel
from flagformer.attention.kernels.einsum import Dropout, Einsum
from flagformer.attention.scores import ScorePath
from flagformer.flags import component
from flagformer.flow import Pairs


@component("kernel", select="attn_flash", when=True, paper="arXiv:2205.14135")
class SDPA(Kernel):
    """torch.nn.functional.scaled_dot_product_attention."""

    reason = "fused, and serves every slot that is filled"

    def __init__(self, path: ScorePath, *, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = path.scale, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs) -> Tensor:
        mask = pairs.visible if pairs.bias is None else pairs.bias.to(q.dtype)
        # torch aligns `is_causal` at the top left: as many empty queries as seats keep it right, and drop out
        empty = pairs.seats if pairs.causal else 0
        out = F.scaled_dot_product_attention(
            F.pad(q, (0, 0, empty, 0)) if empty else q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=pairs.causal,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out[:, :, empty:] if empty else out


@component("kernel", honours={"learned_bias"})
class FusedUnlessLearning(Kernel):
    """SDPA, except where a bias needs its gradient: torch's fused kernels have none for it."""

    reason = "SDPA; written out while a learned bias needs its gradient, for which no fused kernel exists"

    def __init__(self, path: ScorePath, *, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.fused, self.written_out = SDPA(path, dropout=dropout), Einsum(path, dropout=dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs) -> Tensor:
        learning = pairs.bias is not None and pairs.bias.requires_grad
        kernel = self.written_out if learning else self.fused
        return kernel(q, k, v, pairs)
