"""Functions where modules might stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def identity(x: Tensor) -> Tensor:
    """x, as it is: stands where no component is chosen (a function, as a module's call costs 1 us)."""
    return x


class Function(nn.Module):
    """A plain function as a module, so that a list of modules can hold it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def as_module(filler: Callable[..., Any]) -> nn.Module:
    return filler if isinstance(filler, nn.Module) else Function(filler)
