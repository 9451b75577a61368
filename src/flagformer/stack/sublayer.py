"""One sublayer: norm, function, norm, branch, stream, norm; unfilled places hold `identity`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flagformer.entry import Entry
from flagformer.flow import SideInputs
from flagformer.residual import Residual

Step = Callable[[Tensor], Tensor]


class Sublayer(nn.Module):
    """`(h, side) -> h`: reads the stream, computes, writes the stream.

    Args:
        index: which of the stack's modules it is.
        kind: "a", "c" or "f".
        entry: `(x, side) -> x`, before the function and behind the norm.
        fn: attention or feedforward, `(x, side) -> x`.
        in_norm, branch_norm, out_norm: of what is read, of what is added, of the stream.
        branch: what happens to the output before it joins the stream.
    """

    residual: Residual

    def __init__(
        self,
        index: int,
        kind: str,
        entry: Entry,
        fn: Any,
        in_norm: Step,
        branch_norm: Step,
        out_norm: Step,
        branch: Step,
        residual: Residual,
    ) -> None:
        super().__init__()
        self.entry = entry
        self.index, self.kind, self.fn, self.branch = index, kind, fn, branch
        self.__dict__["residual"] = (
            residual  # the stack's own: registered here it would be saved once a sublayer
        )
        self.in_norm, self.branch_norm, self.out_norm = in_norm, branch_norm, out_norm

    def forward(self, h: Any, side: SideInputs) -> Any:
        x = self.entry(self.in_norm(self.residual.read(h, self.index)), side)
        out = self.branch(self.branch_norm(self.fn(x, side)))
        return self.residual.change(self.residual.write(h, out, self.index), self.out_norm)
