"""Residual attention (RealFormer, arXiv:2012.11747): scores are added from layer to layer."""

from __future__ import annotations

from torch import Tensor

from flagformer.attention.cores.block_sparse import MAPS
from flagformer.attention.cores.dense import Dense
from flagformer.attention.kernels.eager import Eager
from flagformer.attention.z_loss import NAME, add_z_loss
from flagformer.flags import component
from flagformer.flow import AttentionBias, KeyValues, SideInputs

PAPER = "arXiv:2012.11747, section 3.2"
NEEDS = {"scores", "carry", "all_pairs"}


class ResidualAttention(Dense):
    """Adds the scaled products q k^T of all previous layers; biases, clamps and masks apply to the sum.

    Departure: in the paper the sum includes the relative bias of each layer.
    """

    carries = True
    kernel: Eager
    name: str  # of the products in `side.carry`

    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        products = self.path.qk_logits(q, kv.k)
        if self.name in side.carry:
            products = products + side.carry[self.name]
        side.carry[self.name] = products
        scores = self.path.scores(products, q, kv.k, bias)
        if side.collector.is_loss_requested(NAME):
            add_z_loss(scores, bias, side)
        weights = self.path.probs(scores, bias)
        side.collector.record(MAPS, weights)
        return self.kernel.gather(weights, kv.v)


@component("core", select="residual_attn", paper=PAPER, needs=NEEDS, kind="a")
class ResidualScores(ResidualAttention):
    """Self-attention adds the scores of the previous self-attention."""

    name = "attn.scores"


@component("core", select="cross_residual_attn", paper=PAPER, needs=NEEDS, kind="c")
class ResidualCrossScores(ResidualAttention):
    """Cross-attention adds the scores of the previous cross-attention."""

    name = "attn.context_scores"
