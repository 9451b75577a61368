"""Activation checkpointing (arXiv:1604.06174), whole or selective (arXiv:2205.05198)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from flagformer.attention.kernels import FUSED_OPERATORS
from flagformer.flags import Flag, component
from flagformer.flow import SideInputs
from flagformer.residual import Residual
from flagformer.stack.executor import NO_CARRY, Executor, recomputes
from flagformer.stack.executor.forward_context import ForwardContext
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.sublayer import Sublayer

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
# Operators whose outputs are saved: projections and fused attention take most of the time and little of the
# memory. Pointwise operators and the scores [B, H, T, S] are recomputed.
SAVED_OPERATORS = {"aten::mm", "aten::addmm", *FUSED_OPERATORS}


@component("executor", select="checkpoint", paper="arXiv:1604.06174", lacks={"carry": NO_CARRY})
class Checkpointed(Executor):
    """Saves the stream before each sublayer and recomputes the sublayer in the backward.

    "selective" also saves the outputs of projections and of fused attention and recomputes the rest
    (arXiv:2205.05198, section 5, saves more: all except attention scores and weights). Dropout uses the same
    random numbers in recomputation. Without gradients, while decoding, when tensors are requested by name, or
    under transforms of `torch.func`, sublayers run sequentially without recomputation.
    """

    def __init__(
        self,
        *,
        unit: Annotated[
            str | None,
            Flag(
                "checkpoint",
                "recompute activations in the backward: of whole sublayers, or all except expensive ones",
                choices=("sublayer", "selective", None),
            ),
        ],
    ) -> None:
        self.unit = unit
        self.sequential = Sequential()
        saved = "the stream before each sublayer"
        self.saves = (
            f"{saved}, projections and fused attention; the rest is recomputed"
            if unit == "selective"
            else f"{saved}; the rest is recomputed"
        )

    def wrap_residual(self, residual: Residual) -> Residual:
        return residual

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        if not recomputes(side):
            return self.sequential.run(sublayers, residual, h, side)
        if torch.compiler.is_compiling():
            return self._traced(sublayers, residual, h, side)
        contexts: Callable[[], Contexts] = noop_context_fn
        autocast: AbstractContextManager[None] = nullcontext()
        if self.unit == "selective":
            # without the cast cache, so that recomputation runs the same operators as the forward
            contexts, autocast = _selective, ForwardContext(side.layout.positions.device).autocast()
        with autocast:
            for step, sublayer in enumerate(sublayers):
                side.collector.record_hidden(step, residual.read(h, sublayer.index))
                here = replace(side, step=step)
                context_fn = partial(_contexts, contexts, here)
                h = checkpoint(sublayer, h, here, use_reentrant=False, context_fn=context_fn)
        return h

    def _traced(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        """For compilers, which trace a sublayer once, so that its losses are not added twice."""
        for step, sublayer in enumerate(sublayers):
            side.collector.record_hidden(step, residual.read(h, sublayer.index))
            here = replace(side, step=step)
            if self.unit == "selective":
                h = checkpoint(sublayer, h, here, use_reentrant=False, context_fn=_selective)
            else:
                h = checkpoint(sublayer, h, here, use_reentrant=False)
        return h


@contextmanager
def recomputing(side: SideInputs) -> Iterator[None]:
    """Mark the side inputs as recomputation, whose losses the collector has already."""
    collector, side.collector, side.recomputing = side.collector, side.collector.fork(), True
    try:
        yield
    finally:
        side.collector, side.recomputing = collector, False


def _selective() -> Contexts:
    return create_selective_checkpoint_contexts(_policy)


def _contexts(contexts: Callable[[], Contexts], side: SideInputs) -> Contexts:
    forward, recompute = contexts()
    return forward, _Recomputation(side, recompute)


class _Recomputation(AbstractContextManager[None]):
    """The context of each recomputation of one forward; every backward enters it once.

    Args:
        recompute: torch's own context of recomputation.
    """

    def __init__(self, side: SideInputs, recompute: AbstractContextManager[Any]) -> None:
        self.side, self.recompute = side, recompute
        self.entered = ExitStack()

    def __enter__(self) -> None:
        for context in (recomputing(self.side), _keep_saved(self.recompute), self.recompute):
            self.entered.enter_context(context)

    def __exit__(self, *error: Any) -> None:
        self.entered.__exit__(*error)


@contextmanager
def _keep_saved(recompute: AbstractContextManager[Any]) -> Iterator[None]:
    """Restore the saved outputs, which a recomputation removes from torch's storage, for later backwards."""
    storage = getattr(recompute, "storage", {})
    saved = {operator: copy(outputs) for operator, outputs in storage.items()}
    try:
        yield
    finally:
        storage.update(saved)


def _policy(context: Any, operator: Any, *args: Any, **how: Any) -> CheckpointPolicy:
    saved = operator.name() in SAVED_OPERATORS
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE
