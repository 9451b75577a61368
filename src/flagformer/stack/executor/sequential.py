"""One sublayer after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flagformer.flags import component
from flagformer.flow import SideInputs
from flagformer.residual import Residual
from flagformer.stack.executor import Executor
from flagformer.stack.sublayer import Sublayer


@component("executor", honours={"carry", "stream"})
class Sequential(Executor):
    """Runs in order; autograd keeps every activation."""

    saves = "every activation"

    def over(self, residual: Residual) -> Residual:
        return residual

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        tape = side.tape
        for step, sublayer in enumerate(sublayers):
            if tape.asked:
                stream = residual.read(h, sublayer.index)
                tape.keep("stack.stream", stream)
                tape.remember(step, stream)
            side.step = step
            h = sublayer(h, side)
        if tape.asked:
            tape.keep("stack.stream", residual.read(h, sublayers[-1].index))
        return h
