"""Eager attention: the reference, and the only kernel that computes the weights as a tensor."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.flags import Flag, component
from flagformer.flow import AttentionBias
from flagformer.ops.attend import repeat_kv

Dropout = Annotated[float, Flag("attn_dropout", "dropout of attention weights", ge=0, lt=1)]


@component("kernel", select="attn_flash", when=False)
class Eager(Kernel):
    """softmax(q k^T) v in three steps; memory grows with T * S."""

    reason = "needed, because it computes the scores as a tensor"

    def __init__(self, path: ScorePipeline, *, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.path, self.dropout = path, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
        return self.gather(self.path(q, k, bias), v)

    def gather(self, weights: Tensor, v: Tensor) -> Tensor:
        """Weights [B, H, T, P + S], values [B, G, P + S, V] -> [B, H, T, V]."""
        weights = F.dropout(weights, self.dropout, self.training).to(v.dtype)
        return weights @ repeat_kv(v, weights.shape[1])
