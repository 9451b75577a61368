"""Executors: in which order, and with which memory, sublayers run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from flagformer.flow import SideInputs
from flagformer.ops.traced import transformed
from flagformer.residual import Residual
from flagformer.stack.sublayer import Sublayer


class Executor(ABC):
    """Contract of the slot `executor`; before each sublayer it sets `side.step`, and tells the collector's
    `remember` what the sublayer reads."""

    saves: str  # what is kept for backward, for `explain`

    @abstractmethod
    def wrap_residual(self, residual: Residual) -> Residual:
        """The stream that it runs over: this one, or one of its own in place of it."""

    @abstractmethod
    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        """The opened stream -> the stream behind the last sublayer."""


def recomputes(side: SideInputs) -> bool:
    """Whether there is a backward to compute activations again for, and nothing forbids it.

    A decoding session and tensors that a collector requests are made once; transforms of `torch.func` allow
    no repetition.
    """
    return (
        torch.is_grad_enabled() and side.state is None and not side.collector.requested and not transformed()
    )
