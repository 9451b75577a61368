"""Activation checkpointing (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flagformer.flags import Flag, component
from flagformer.flow import SideInputs
from flagformer.residual import Residual
from flagformer.stack.executor import Executor
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.sublayer import Sublayer


@component("executor", select="checkpoint", paper="arXiv:1604.06174")
class Checkpointed(Executor):
    """Keeps the stream before each sublayer and computes the sublayer again for its gradient.

    Dropout draws the same numbers again. Without gradients, or when tensors are asked for by name, it is the
    sequential executor.
    """

    saves = "the stream before each sublayer; the rest is computed again"

    def __init__(
        self,
        *,
        unit: Annotated[
            str | None,
            Flag(
                "checkpoint",
                "recompute activations in the backward, unit by unit",
                choices=("sublayer", None),
            ),
        ],
    ) -> None:
        self.unit = unit
        self.plain = Sequential()

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        if not torch.is_grad_enabled() or side.state is not None or side.tape.wanted:
            return self.plain.run(sublayers, residual, h, side)
        for step, sublayer in enumerate(sublayers):
            side.tape.remember(step, residual.read(h, sublayer.index))
            h, losses = checkpoint(_run, sublayer, h, replace(side, step=step), use_reentrant=False)
            side.tape.add_losses(losses)
        return h


def _run(sublayer: Sublayer, h: Any, side: SideInputs) -> tuple[Any, dict[str, list[Tensor]]]:
    """The stream behind a sublayer and its losses, which a recomputation must not add again."""
    part = side.tape.part()
    return sublayer(h, replace(side, tape=part)), part.losses
