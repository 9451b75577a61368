"""The residual stream: one seam with four verbs; `h` is opaque to everyone else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Residual(nn.Module, ABC):
    """Contract of the slot `residual`."""

    @abstractmethod
    def open(self, x: Tensor) -> Any:
        """[B, T, D] -> the stream h."""

    @abstractmethod
    def read(self, h: Any, step: int) -> Tensor:
        """What sublayer `step` sees."""

    @abstractmethod
    def write(self, h: Any, out: Tensor, step: int) -> Any:
        """The stream after sublayer `step` said `out`."""

    @abstractmethod
    def close(self, h: Any) -> Tensor:
        """The stream -> [B, T, D]."""
