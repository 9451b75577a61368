"""GRU gating in place of the residual sum (GTrXL, arXiv:1910.06764)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.ops.full_precision import no_autocast
from flagformer.ops.linear import Linear
from flagformer.ops.sharded import laid_out
from flagformer.residual.additive import SingleStream

# b_g of the paper: the initial bias of the update gate, with which the stream passes nearly unchanged.
UPDATE_BIAS = 2.0


@component("residual", select="gate_residual", paper="arXiv:1910.06764, section 3.2", needs={"stream"})
class GRUGate(SingleStream):
    """A GRU cell per sublayer: its input is the sublayer's output, its hidden state the stream.

    Departure: the reset gate is applied after the projection of the stream, as in torch's GRU.
    """

    def __init__(self, dims: Dims, modules: int) -> None:
        super().__init__()
        self.of_out = nn.ModuleList(
            Linear(dims.dim, 3 * dims.dim, init=_init_update_bias) for _ in range(modules)
        )
        self.of_stream = nn.ModuleList(nn.Linear(dims.dim, 3 * dims.dim) for _ in range(modules))

    def write(self, h: Tensor, out: Tensor, module: int) -> Tensor:
        # under autocast, gates in bf16 would round the whole stream at each sublayer
        with no_autocast(h.device):
            return self._gated(h, out.to(h.dtype), module)

    def _gated(self, h: Tensor, out: Tensor, module: int) -> Tensor:
        out_reset, out_update, out_new = self.of_out[module](out).chunk(3, dim=-1)
        h_reset, h_update, h_new = self.of_stream[module](h).chunk(3, dim=-1)
        update = (out_update + h_update).sigmoid()
        new = (out_new + (out_reset + h_reset).sigmoid() * h_new).tanh()
        return new + update * (h - new)


@torch.no_grad()
def _init_update_bias(linear: nn.Linear) -> None:
    """Set the biases of the update gate, the second third, to UPDATE_BIAS."""
    is_update = laid_out(torch.arange(linear.out_features) * 3 // linear.out_features == 1, linear.bias)
    linear.bias.masked_fill_(is_update, UPDATE_BIAS)
