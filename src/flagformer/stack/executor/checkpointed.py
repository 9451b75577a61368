"""Activation checkpointing (arXiv:1604.06174), whole or selective (arXiv:2205.05198)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from flagformer.residual import Residual
from flagformer.stack.executor import Executor
from flagformer.stack.executor.replay import Surroundings
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.sublayer import Sublayer

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
aten = torch.ops.aten
# Projections and fused attention: most of the time, and few of the bytes. What is pointwise, and the products
# of queries and keys [B, H, T, S], is computed again.
COSTLY = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    attend._opoverload,
}


@component("executor", select="checkpoint", paper="arXiv:1604.06174", honours={"stream"})
class Checkpointed(Executor):
    """Keeps the stream before each sublayer and computes the sublayer again for its gradient.

    "selective" keeps the outputs of projections and of fused attention too, and computes only the rest again
    (arXiv:2205.05198, section 5, keeps more: all but the attention's products and weights). Dropout draws the
    same numbers again. Without gradients, while decoding, or when tensors are asked for by name, it is the
    sequential executor.
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

    def over(self, residual: Residual) -> Residual:
        return residual

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        if not torch.is_grad_enabled() or side.state is not None or side.tape.wanted:
            return self.plain.run(sublayers, residual, h, side)
        if torch.compiler.is_compiling():
            return self._traced(sublayers, residual, h, side)
        contexts: Callable[[], Contexts] = noop_context_fn
        around: AbstractContextManager[None] = nullcontext()
        if self.unit == "selective":
            # a weight whose cast is cached is not cast again, and the repetition would miss that operator
            contexts, around = _costly, Surroundings(side.layout.positions.device).autocast()
        with around:
            for step, sublayer in enumerate(sublayers):
                side.tape.remember(step, residual.read(h, sublayer.index))
                here = replace(side, step=step)
                again = partial(_replaying, contexts, here)
                h = checkpoint(sublayer, h, here, use_reentrant=False, context_fn=again)
        return h

    def _traced(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        """For a compiler: what it traces once says nothing twice."""
        for step, sublayer in enumerate(sublayers):
            side.tape.remember(step, residual.read(h, sublayer.index))
            here = replace(side, step=step)
            if self.unit == "selective":
                h = checkpoint(sublayer, h, here, use_reentrant=False, context_fn=_costly)
            else:
                h = checkpoint(sublayer, h, here, use_reentrant=False)
        return h


@contextmanager
def replaying(side: SideInputs) -> Iterator[None]:
    """The side inputs of a repetition: it says so, and its losses are on the tape already."""
    tape, side.tape, side.replay = side.tape, side.tape.part(), True
    try:
        yield
    finally:
        side.tape, side.replay = tape, False


def _costly() -> Contexts:
    return create_selective_checkpoint_contexts(_policy)


def _replaying(contexts: Callable[[], Contexts], side: SideInputs) -> Contexts:
    forward, again = contexts()
    return forward, _both(replaying(side), again)


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


def _policy(context: Any, operator: Any, *arguments: Any, **how: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
