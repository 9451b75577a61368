"""Plain functions in place of modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def identity(x: Tensor) -> Tensor:
    """Return x: the default of slots without a component (a function, as a module's call costs 1 us)."""
    return x


class Function(nn.Module):
    """A function wrapped as a module, for module lists."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def as_module(function: Callable[..., Any]) -> nn.Module:
    return function if isinstance(function, nn.Module) else Function(function)
