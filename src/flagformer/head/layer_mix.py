"""Combinations of the hidden states of all layers, before the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.head import LayerMix
from flagformer.ops.full_precision import accum_dtype


@component("layer_mix")
class NoLayerMix(LayerMix):
    """The output of the last layer, as it is."""

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, hiddens: Sequence[Tensor]) -> Tensor:
        return x


@component("layer_mix", select="scalar_mix", paper="arXiv:1802.05365, section 3.2")
class ScalarMix(LayerMix):
    """A learned weighted mean of the residual stream before each sublayer and the output, times a factor.

    Weights are a softmax, initially equal; the factor is initially 1. Departure: ELMo has one hidden state
    per layer, here each sublayer has one.
    """

    def __init__(
        self,
        dim: int,
        steps: int,
        *,
        normed: Annotated[
            bool, Flag("scalar_mix_norm", "LayerNorm, without parameters, of each hidden state first")
        ] = False,
    ) -> None:
        super().__init__()
        self.dim, self.normed = dim, normed
        self.weight = nn.Parameter(torch.empty(steps + 1))
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor, hiddens: Sequence[Tensor]) -> Tensor:
        states = [*hiddens, x]
        if self.normed:
            states = [F.layer_norm(state, (self.dim,)) for state in states]
        weights = self.scale * self.weight.to(accum_dtype(self.weight.dtype)).softmax(0)
        terms = [weight * state for weight, state in zip(weights.unbind(), states)]
        return sum(terms[1:], terms[0]).to(x.dtype)
