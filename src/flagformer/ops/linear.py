"""Linear projections with a custom initialisation, and biases of some of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
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


class PartialBias(nn.Module):
    """Adds biases to some of the outputs of a projection: [..., O] -> [..., O].

    Args:
        inputs: I of the projection, for torch's initialisation.
        parts: (number of outputs, whether they have biases), in the order of the outputs.

    Attributes:
        bias: [number of outputs with biases].
    """

    def __init__(self, inputs: int, parts: Sequence[tuple[int, bool]]) -> None:
        super().__init__()
        self.bound, self.parts = inputs**-0.5, tuple(parts)
        self.bias = nn.Parameter(torch.empty(sum(width for width, biased in parts if biased)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.bias, -self.bound, self.bound)

    def forward(self, x: Tensor) -> Tensor:
        given = iter(self.bias.split([width for width, biased in self.parts if biased]))
        biases = [next(given) if biased else self.bias.new_zeros(width) for width, biased in self.parts]
        return x + torch.cat(biases)
