"""Executors: in which order, and with which memory, sublayers run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from flagformer.flow import SideInputs
from flagformer.residual import Residual
from flagformer.stack.sublayer import Sublayer


class Executor(ABC):
    """Contract of the slot `executor`; before each sublayer it sets `side.step`, and tells the tape's
    `remember` what the sublayer reads."""

    saves: str  # what is kept for backward, for `explain`

    @abstractmethod
    def over(self, residual: Residual) -> Residual:
        """The stream that it runs over: this one, or one of its own in place of it."""

    @abstractmethod
    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        """The opened stream -> the stream behind the last sublayer."""
