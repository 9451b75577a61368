"""The residual stream: one seam with five verbs; `h` is opaque to everyone else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Residual(nn.Module, ABC):
    """Contract of the slot `residual`, built as `(dims, modules)`: the number of sublayers that are built.

    `module` says which of them speaks; a tied one speaks at several steps.
    """

    @abstractmethod
    def open(self, x: Tensor) -> Any:
        """[B, T, D] -> the stream h."""

    @abstractmethod
    def read(self, h: Any, module: int) -> Tensor:
        """What the sublayer sees."""

    @abstractmethod
    def write(self, h: Any, out: Tensor, module: int) -> Any:
        """The stream after the sublayer said `out`."""

    @abstractmethod
    def apply_norm(self, h: Any, norm: Callable[[Tensor], Tensor]) -> Any:
        """The stream with a norm over what the next sublayer reads (post-norm)."""

    @abstractmethod
    def close(self, h: Any, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """The stream -> [B, T, D], through the final norm."""
