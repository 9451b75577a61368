"""Sequential execution of the sublayers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flagformer.flags import component
from flagformer.flow import SideInputs
from flagformer.residual import Residual
from flagformer.stack.executor import Executor
from flagformer.stack.sublayer import Sublayer


@component("executor")
class Sequential(Executor):
    """Runs the sublayers in order; autograd saves all activations."""

    saves = "every activation"

    def wrap_residual(self, residual: Residual) -> Residual:
        return residual

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        collector = side.collector
        for step, sublayer in enumerate(sublayers):
            if collector.is_active:
                stream = residual.read(h, sublayer.index)
                collector.record("stack.stream", stream)
                collector.record_hidden(step, stream)
            side.step = step
            h = sublayer(h, side)
        if collector.is_active:
            collector.record("stack.stream", residual.read(h, sublayers[-1].index))
        return h
