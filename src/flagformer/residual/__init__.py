"""The residual stream: an interface of five methods; `h` is opaque to the other components."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Residual(nn.Module, ABC):
    """Contract of the slot `residual`, built as `(dims, modules)` with the number of sublayer modules.

    `module` is the index of the sublayer's module; a tied module runs at several steps.
    """

    @abstractmethod
    def open(self, x: Tensor) -> Any:
        """Open the stream: [B, T, D] -> h."""

    @abstractmethod
    def read(self, h: Any, module: int) -> Tensor:
        """Return the input of a sublayer, [B, T, D]."""

    @abstractmethod
    def write(self, h: Any, out: Tensor, module: int) -> Any:
        """Return the stream after a sublayer with the output `out` [B, T, D]."""

    @abstractmethod
    def apply_norm(self, h: Any, norm: Callable[[Tensor], Tensor]) -> Any:
        """Return the stream with the norm of the next sublayer's input (post-norm)."""

    @abstractmethod
    def close(self, h: Any, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """Close the stream: h -> [B, T, D], after the final norm."""
