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

from flagformer.flags import Flag, component
from flagformer.flow import SideInputs
from flagformer.ops.attend_by_distance import attend
from flagformer.ops.tried import private
from flagformer.residual import Residual
from flagformer.stack.executor import Executor, recomputes
from flagformer.stack.executor.forward_context import ForwardContext
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.sublayer import Sublayer

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
aten = torch.ops.aten
FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
# Projections and fused attention: most of the time, and few of the bytes. What is pointwise, and the products
# of queries and keys [B, H, T, S], is computed again.
COSTLY = {
    aten.mm.default,
    aten.addmm.default,
    *(operator.default for name in FUSED if (operator := private(name)) is not None),
    attend._opoverload,
}


@component("executor", select="checkpoint", paper="arXiv:1604.06174", supports={"stream"})
class Checkpointed(Executor):
    """Keeps the stream before each sublayer and computes the sublayer again for its gradient.

    "selective" keeps the outputs of projections and of fused attention too, and computes only the rest again
    (arXiv:2205.05198, section 5, keeps more: all but the attention's products and weights). Dropout draws the
    same numbers again. Without gradients, while decoding, when tensors are asked for by name, or under
    transforms of `torch.func`, it is the sequential executor.
    """

    def __init__(
        self,
        *,
        unit: Annotated[
            str | None,
            Flag(
                "checkpoint",
                "recompute activations in the backward: of whole sublayers, or all but costly ones",
                choices=("sublayer", "selective", None),
            ),
        ],
    ) -> None:
        self.unit = unit
        self.plain = Sequential()
        kept = "the stream before each sublayer"
        self.saves = (
            f"{kept}, projections and fused attention; the rest is computed again"
            if unit == "selective"
            else f"{kept}; the rest is computed again"
        )

    def wrap_residual(self, residual: Residual) -> Residual:
        return residual

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        if not recomputes(side):
            return self.plain.run(sublayers, residual, h, side)
        if torch.compiler.is_compiling():
            return self._traced(sublayers, residual, h, side)
        contexts: Callable[[], Contexts] = noop_context_fn
        around: AbstractContextManager[None] = nullcontext()
        if self.unit == "selective":
            # a weight whose cast is cached is not cast again, and the repetition would miss that operator
            contexts, around = _costly, ForwardContext(side.layout.positions.device).autocast()
        with around:
            for step, sublayer in enumerate(sublayers):
                side.collector.record_hidden(step, residual.read(h, sublayer.index))
                here = replace(side, step=step)
                again = partial(_replaying, contexts, here)
                h = checkpoint(sublayer, h, here, use_reentrant=False, context_fn=again)
        return h

    def _traced(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        """For a compiler: what it traces once says nothing twice."""
        for step, sublayer in enumerate(sublayers):
            side.collector.record_hidden(step, residual.read(h, sublayer.index))
            here = replace(side, step=step)
            if self.unit == "selective":
                h = checkpoint(sublayer, h, here, use_reentrant=False, context_fn=_costly)
            else:
                h = checkpoint(sublayer, h, here, use_reentrant=False)
        return h


@contextmanager
def replaying(side: SideInputs) -> Iterator[None]:
    """The side inputs of a repetition: it says so, and its losses are on the collector already."""
    collector, side.collector, side.recomputing = side.collector, side.collector.fork(), True
    try:
        yield
    finally:
        side.collector, side.recomputing = collector, False


def _costly() -> Contexts:
    return create_selective_checkpoint_contexts(_policy)


def _replaying(contexts: Callable[[], Contexts], side: SideInputs) -> Contexts:
    forward, again = contexts()
    return forward, _Repetition(side, again)


class _Repetition(AbstractContextManager[None]):
    """Around each repetition of one forward: there are as many as backwards.

    Args:
        again: torch's own context of it.
    """

    def __init__(self, side: SideInputs, again: AbstractContextManager[Any]) -> None:
        self.side, self.again = side, again
        self.entered = ExitStack()

    def __enter__(self) -> None:
        for context in (replaying(self.side), _unspent(self.again), self.again):
            self.entered.enter_context(context)

    def __exit__(self, *error: Any) -> None:
        self.entered.__exit__(*error)


@contextmanager
def _unspent(again: AbstractContextManager[Any]) -> Iterator[None]:
    """A repetition takes the kept outputs out of torch's storage; the next backward needs them too."""
    storage = getattr(again, "storage", {})
    held = {operator: copy(outputs) for operator, outputs in storage.items()}
    try:
        yield
    finally:
        storage.update(held)


def _policy(context: Any, operator: Any, *arguments: Any, **how: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
