"""The linear layers of E experts, as one parameter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.ops.experts import ByExpert
from flagformer.ops.full_precision import cast_together
from flagformer.ops.grouped_linear import grouped_linear

TensorFn = Callable[[Tensor], Tensor]


class Experts(nn.Module):
    """A linear layer for each of E experts, initialised like `nn.Linear`.

    Attributes:
        weight: [E, O, I].
        bias: [E, O], or None.
    """

    bias: nn.Parameter | None

    def __init__(self, experts: int, width: int, out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out, width))
        self.register_parameter("bias", nn.Parameter(torch.empty(experts, out)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight.shape[2] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def of(self, number: int) -> TensorFn:
        """The layer of one expert, [N, I] -> [N, O]."""
        bias = None if self.bias is None else self.bias[number]
        return partial(F.linear, weight=self.weight[number], bias=bias)

    def each(self) -> list[TensorFn]:
        """The layer of each expert, [N, I] -> [N, O]."""
        weights = self.weight.unbind(0)  # with one gradient of all, where indices would make E of that size
        biases = [None] * len(weights) if self.bias is None else self.bias.unbind(0)
        return [partial(F.linear, weight=weight, bias=bias) for weight, bias in zip(weights, biases)]

    def grouped(self, x: Tensor, groups: ByExpert) -> Tensor:
        """The rows of x [N, I], sorted by expert, each through the layer of its expert: [N, O]."""
        x, weight = cast_together(x, self.weight)
        out = grouped_linear(x, weight, groups.offsets)
        return out if self.bias is None else out + F.embedding(groups.experts, self.bias).to(out.dtype)
