"""Activation checkpointing (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch.utils.checkpoint import checkpoint

from flagformer.flags import Flag, component
from flagformer.flow import SideInputs, Tape
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
            here = replace(side, step=step)
            if torch.compiler.is_compiling():  # it traces both runs at once, and repeats nothing
                h = checkpoint(sublayer, h, here, use_reentrant=False)
            else:
                contexts = partial(_contexts, here)
                h = checkpoint(sublayer, h, here, use_reentrant=False, context_fn=contexts)
        return h


Context = AbstractContextManager[Any]


def _contexts(side: SideInputs) -> tuple[Context, Context]:
    """What surrounds the forward and its repetition."""
    return nullcontext(), replaying(side)


@contextmanager
def replaying(side: SideInputs) -> Iterator[None]:
    """The side inputs of a repetition: it says so, and its losses are on the tape already."""
    tape, side.tape, side.replay = side.tape, Tape(), True
    try:
        yield
    finally:
        side.tape, side.replay = tape, False
