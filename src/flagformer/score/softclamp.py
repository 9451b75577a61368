"""Soft clamp of the scores (arXiv:2408.00118)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from flagformer.flags import Flag, component
from flagformer.flow import AttentionBias, Dims
from flagformer.score import Score


@component("score", select="attn_softclamp_logits", paper="arXiv:2408.00118, section 2", needs={"scores"})
class SoftClamp(Score):
    """Soft-capped scores: cap * tanh(score / cap). The position bias is added afterwards, uncapped."""

    reads_heads = False

    def __init__(
        self,
        dims: Dims,
        *,
        cap: Annotated[float, Flag("attn_logit_softclamp_value", "the cap of scores", ge=1e-3)] = 50.0,
    ) -> None:
        super().__init__()
        self.cap = float(cap)

    def forward(self, scores: Tensor, q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
        return (scores / self.cap).tanh() * self.cap
