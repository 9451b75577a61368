"""The pooler of BERT (arXiv:1810.04805): a projection of one vector for each row, and an activation."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from flagformer.feedforward.activation import ACTIVATIONS
from flagformer.flags import Finding, Flag

TANH = "tanh"
PoolerActivation = Annotated[
    str,
    Flag(
        "pooler_activation",
        "activation of `pooler` (DeBERTa: gelu)",
        choices=tuple(ACTIVATIONS),
        example="relu",
    ),
]


class Pooler(nn.Module):
    """act(W x + b): [B, D] -> [B, D].

    Args:
        activation: a name of `ff_activation`; BERT has "tanh".
    """

    def __init__(self, dim: int, activation: str = TANH) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


def pooler_errors(pooler: bool, activation: str) -> list[Finding]:
    """Findings for an activation without a pooler."""
    if pooler or activation == TANH:
        return []
    text = "`pooler_activation` has no effect here, because `pooler` is not set; set that too"
    return [Finding("pooler_activation", text)]
