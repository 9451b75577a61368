"""Executors run the sublayers and decide which activations are saved for the backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from flagformer.flow import SideInputs
from flagformer.ops.traced import transformed
from flagformer.residual import Residual
from flagformer.stack.sublayer import Sublayer

NO_CARRY = "values passed from one sublayer to a later one are not available when a sublayer is recomputed"


class Executor(ABC):
    """Contract of the slot `executor`.

    Before each sublayer it sets `side.step` and passes the input to `side.collector.record_hidden`.
    """

    saves: str  # the tensors saved for the backward, for `explain`

    @abstractmethod
    def wrap_residual(self, residual: Residual) -> Residual:
        """Return the residual to use: this one, or one of the executor's own."""

    @abstractmethod
    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        """Run all sublayers: the opened stream -> the stream after the last sublayer."""


def recomputes(side: SideInputs) -> bool:
    """Whether activations are recomputed in the backward.

    False without gradients, with a decode state, when a collector requests tensors by name, and under
    transforms of `torch.func`, which do not support recomputation.
    """
    return (
        torch.is_grad_enabled() and side.state is None and not side.collector.requested and not transformed()
    )
