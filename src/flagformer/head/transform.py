"""Projection, activation and norm before the logits of a masked language model (BERT, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from torch import Tensor, nn

from flagformer.feedforward.activation import ACTIVATIONS
from flagformer.flags import Finding, Flag, FlagError
from flagformer.norm.layernorm import DEFAULT_EPS, LayerNorm
from flagformer.ops.identity import identity

Activation = Annotated[
    str | None,
    Flag(
        "head_transform",
        "a projection, this activation and a LayerNorm before the logits (BERT, 1810.04805); None: none",
        choices=(*ACTIVATIONS, None),
        example="relu",
    ),
]
Bias = Annotated[
    bool,
    Flag(
        "head_transform_bias",
        "biases in the projection and the norm of `head_transform`",
        example_with={"head_transform": "gelu"},
    ),
]
Eps = Annotated[
    float,
    Flag(
        "head_transform_eps",
        "epsilon of the norm of `head_transform`",
        ge=1e-12,
        lt=1,
        example=0.25,
        example_with={"head_transform": "gelu"},
    ),
]


class HeadTransform(nn.Module):
    """LayerNorm(act(W x + b)): [B, T, D] -> [B, T, E].

    Args:
        activation: a name of `ff_activation`.
        bias: whether the projection and the norm have biases.
    """

    def __init__(self, dim: int, width: int, activation: str, bias: bool, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, width, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = LayerNorm(width, eps=eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.activation(self.dense(x)))
        return normed


def head_transform(
    dim: int, width: int, activation: str | None, bias: bool, eps: float
) -> Callable[[Tensor], Tensor]:
    """Return the transform, or the identity without `activation`; FlagError for its parameters without it."""
    if activation is not None:
        return HeadTransform(dim, width, activation, bias, eps)
    given = {"head_transform_bias": not bias, "head_transform_eps": eps != DEFAULT_EPS}
    findings = [
        Finding(name, f"`{name}` has no effect here, because `head_transform` is not set; set that too")
        for name, is_set in given.items()
        if is_set
    ]
    if findings:
        raise FlagError(findings)
    return identity
