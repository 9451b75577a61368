"""The linear layers of E experts, as one parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.ops.experts import ByExpert
from flagformer.ops.full_precision import cast_together
from flagformer.ops.grouped_linear import grouped_linear, has_grouped_mm


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

    def forward(self, parts: list[Tensor], which: Sequence[int] | ByExpert) -> list[Tensor]:
        """[N, I] -> [N, O], for each of `parts`.

        Values of parameters are read here only: FSDP2 gathers those of a module for its own forward.

        Args:
            which: the expert of each part; or the groups of a single part, whose rows are sorted by expert.
        """
        if isinstance(which, ByExpert):
            return [self._grouped(x, which) for x in parts]
        weights: Tensor | tuple[Tensor, ...] = self.weight
        biases: Tensor | tuple[Tensor, ...] | None = self.bias
        if torch.is_grad_enabled():  # with one gradient of all, where indices would make many of that size
            weights = self.weight.unbind(0)
            biases = None if self.bias is None else self.bias.unbind(0)
        return [F.linear(x, weights[e], None if biases is None else biases[e]) for x, e in zip(parts, which)]

    def _grouped(self, x: Tensor, groups: ByExpert) -> Tensor:
        x, weight = cast_together(x, self.weight)
        out = grouped_linear(x, weight, groups.offsets)
        return out if self.bias is None else out + F.embedding(groups.experts, self.bias).to(out.dtype)

    def has_grouped_mm(self, x: Tensor) -> bool:
        """Whether torch's fused kernel computes the products with x, by shape and dtype of `weight`."""
        weight = x.new_empty(0, *self.weight.shape[1:], dtype=self.weight.dtype)
        return has_grouped_mm(*cast_together(x[:1], weight))
