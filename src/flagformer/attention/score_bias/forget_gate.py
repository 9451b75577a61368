"""Attention with a forget gate (arXiv:2503.02130): a bias of distances that depends on the tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.score_bias import ScoreBias
from flagformer.flags import Requirement, component
from flagformer.flow import Dims, SideInputs
from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.linear import Linear


@component(
    "score_bias",
    select="attn_forget_gate",
    kind="a",
    paper="arXiv:2503.02130, section 3",
    needs={"learned_bias", "token_bias"},
    requires=[Requirement("causal", True, "a gate of a token forgets the tokens before it")],
)
class ForgetGate(ScoreBias):
    """Each head forgets earlier tokens by gates f = sigmoid(w x + b) of the tokens between key and query.

    The score of query i and key j gets the sum of log f of the tokens j + 1 ... i. Departure: the paper's
    block also has output gates, output norms and shifts of keys and values, which are slots of their own.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.gate = Linear(dims.dim, dims.heads, init=_without_bias)

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        gates = self.gate(x)
        return F.logsigmoid(gates.to(accum_dtype(gates.dtype))).transpose(1, 2)

    def sums(self, numbers: Tensor) -> Tensor:
        return numbers.cumsum(-1)


def _without_bias(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.bias)
