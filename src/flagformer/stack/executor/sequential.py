"""One sublayer after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flagformer.flags import component
from flagformer.flow import SideInputs
from flagformer.residual import Residual
from flagformer.stack.executor import Executor
from flagformer.stack.sublayer import Sublayer


@component("executor")
class Sequential(Executor):
    """Runs in order; autograd keeps every activation."""

    saves = "every activation"

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, x: Tensor, side: SideInputs) -> Tensor:
        h = residual.open(x)
        for step, sublayer in enumerate(sublayers):
            side.tape.keep("stack.stream", residual.read(h, step))
            side.step = step
            h = sublayer(h, side)
        out = residual.close(h)
        side.tape.keep("stack.stream", out)
        return out
