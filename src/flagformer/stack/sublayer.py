"""One sublayer: norm, function, norm, branch, stream, norm; unfilled places hold `identity`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flagformer.flow import SideInputs
from flagformer.residual import Residual

Step = Callable[[Tensor], Tensor]


class Sublayer(nn.Module):
    """`(h, side) -> h`: reads the stream, computes, writes the stream.

    Args:
        kind: "a", "c" or "f".
        fn: attention or feedforward, `(x, side) -> x`.
        in_norm, branch_norm, out_norm: of what is read, of what is added, of the stream.
        branch: what happens to the output before it joins the stream.
    """

    def __init__(
        self,
        kind: str,
        fn: Any,
        in_norm: Step,
        branch_norm: Step,
        out_norm: Step,
        branch: Step,
        residual: Residual,
    ) -> None:
        super().__init__()
        self.kind, self.fn, self.branch, self.residual = kind, fn, branch, residual
        self.in_norm, self.branch_norm, self.out_norm = in_norm, branch_norm, out_norm

    def forward(self, h: Any, side: SideInputs) -> Any:
        x = self.in_norm(self.residual.read(h, side.step))
        out = self.branch(self.branch_norm(self.fn(x, side)))
        return self.out_norm(self.residual.write(h, out, side.step))
