"""Linear projections with a custom initialisation, or with biases of some of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Init = Callable[[nn.Linear], object]


def plain_weight(linear: nn.Module) -> Tensor | None:
    """The weight of an `nn.Linear` that computes no more than x W^T + b: one without hooks, adapters,
    parametrizations, quantised or sharded weights; None for any other, which must be called."""
    if type(linear) is not nn.Linear or type(linear.weight) not in (nn.Parameter, Tensor):
        return None
    hooks = (linear._forward_hooks, linear._forward_pre_hooks)
    return None if any(hooks) or linear._backward_hooks or linear._backward_pre_hooks else linear.weight


class Linear(nn.Linear):
    """`nn.Linear` whose `init` is applied after torch's initialisation, also in `reset_parameters`.

    The initialisation belongs to the layer, so that it does not depend on the order in which modules are
    initialised.
    """

    init: Init | None = None

    def __init__(self, inputs: int, outputs: int, bias: bool = True, init: Init | None = None) -> None:
        self.init = init  # torch's constructor initialises
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.init is not None:
            self.init(self)


class PartlyBiased(nn.Linear):
    """x W^T + b for some of the outputs, x W^T for the others: [..., I] -> [..., O].

    Args:
        parts: (number of outputs, whether they have biases), in the order of the outputs.

    Attributes:
        bias: [number of outputs with biases].
    """

    def __init__(self, inputs: int, parts: Sequence[tuple[int, bool]]) -> None:
        self.parts = tuple(parts)
        super().__init__(inputs, sum(width for width, _ in parts), bias=False)
        self.bias = nn.Parameter(self.weight.new_empty(sum(width for width, biased in parts if biased)))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        given = iter(self.bias.split([width for width, biased in self.parts if biased]))
        bias = torch.cat(
            [next(given) if biased else self.bias.new_zeros(width) for width, biased in self.parts]
        )
        return F.linear(x, self.weight, bias)


def linear_of(inputs: int, parts: Sequence[tuple[int, bool]]) -> nn.Linear:
    """A projection to several outputs in one, each (its width, whether it has biases)."""
    biased = {has_bias for width, has_bias in parts if width}
    if len(biased) == 1:
        return nn.Linear(inputs, sum(width for width, _ in parts), bias=biased.pop())
    return PartlyBiased(inputs, parts)
