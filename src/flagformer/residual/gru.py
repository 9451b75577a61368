"""GRU gates in place of sums (GTrXL, arXiv:1910.06764)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.ops.full_precision import no_autocast
from flagformer.ops.linear import Linear
from flagformer.ops.sharded import laid_out
from flagformer.residual.additive import SingleStream

# What the paper calls b_g: the stream passes nearly unchanged at the start.
KEEP = 2.0


@component("residual", select="gate_residual", paper="arXiv:1910.06764, section 3.2", needs={"stream"})
class GRUGate(SingleStream):
    """A gated recurrent unit per sublayer reads what it said, and the stream is its hidden state.

    Departure: the reset gate acts on the projected stream, as in torch's GRU, and not before the projection.
    """

    def __init__(self, dims: Dims, modules: int) -> None:
        super().__init__()
        self.of_out = nn.ModuleList(Linear(dims.dim, 3 * dims.dim, init=_keeping) for _ in range(modules))
        self.of_stream = nn.ModuleList(nn.Linear(dims.dim, 3 * dims.dim) for _ in range(modules))

    def write(self, h: Tensor, out: Tensor, module: int) -> Tensor:
        # a sum keeps the stream's precision under autocast; gates in bf16 would round all of it every time
        with no_autocast(h.device):
            return self._gated(h, out.to(h.dtype), module)

    def _gated(self, h: Tensor, out: Tensor, module: int) -> Tensor:
        said_reset, said_keep, said = self.of_out[module](out).chunk(3, dim=-1)
        held_reset, held_keep, held = self.of_stream[module](h).chunk(3, dim=-1)
        keep = (said_keep + held_keep).sigmoid()
        new = (said + (said_reset + held_reset).sigmoid() * held).tanh()
        return new + keep * (h - new)


@torch.no_grad()
def _keeping(linear: nn.Linear) -> None:
    """The second third of the biases, those of the gate `keep`, are KEEP."""
    keeps = laid_out(torch.arange(linear.out_features) * 3 // linear.out_features == 1, linear.bias)
    linear.bias.masked_fill_(keeps, KEEP)
