"""x + f(x) (arXiv:1512.03385), with x scaled by a constant (2203.00555) or a learned weight (2110.09456)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.residual import Residual

Constant = Annotated[
    float,
    Flag("scale_residual_constant", "factor of the stream at each sublayer (2203.00555)", ge=1e-3),
]


class SingleStream(Residual):
    """A stream of one tensor [B, T, D]; subclasses implement `write`."""

    def open(self, x: Tensor) -> Tensor:
        return x

    def read(self, h: Tensor, module: int) -> Tensor:
        return h

    @abstractmethod
    def write(self, h: Tensor, out: Tensor, module: int) -> Tensor: ...

    def apply_norm(self, h: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(h)

    def close(self, h: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(h)


@component("residual", paper="arXiv:1512.03385")
class Additive(SingleStream):
    """The output of each sublayer is added to the stream."""

    def __init__(self, dims: Dims, modules: int, *, constant: Constant = 1.0) -> None:
        super().__init__()
        self.constant = constant

    def write(self, h: Tensor, out: Tensor, module: int) -> Tensor:
        return torch.add(out, h, alpha=self.constant)


@component("residual", select="scale_residual", paper="arXiv:2110.09456, section 2.1", needs={"stream"})
class Scaled(SingleStream):
    """The output of each sublayer is added to the stream times a learned weight per dimension."""

    def __init__(self, dims: Dims, modules: int, *, constant: Constant = 1.0) -> None:
        super().__init__()
        self.constant = constant
        self.weight = nn.Parameter(torch.empty(modules, dims.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def init_neutral(self) -> float:
        self.reset_parameters()
        return 1.0

    def forward(self, h: Tensor, module: int) -> Tensor:
        """Return the scaled stream [B, T, D]."""
        return h * self.weight[module]

    def write(self, h: Tensor, out: Tensor, module: int) -> Tensor:
        return torch.add(out, self(h, module), alpha=self.constant)
