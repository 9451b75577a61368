"""The gated short convolution of LFM2 (arXiv:2511.23404)."""

from __future__ import annotations

from torch import Tensor, nn

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.mixer import Mixer, State, StateField
from flagformer.mixer.convolution import CausalConvolution
from flagformer.mixer.sizes import CAUSAL, Kernel
from flagformer.mixer.tokens import BlockTokens, Compaction
from flagformer.ops.linear import Linear


@component(
    "sequence_mixer",
    select="mixer",
    when="short_convolution",
    paper="arXiv:2511.23404, section 2",
    requires=[CAUSAL],
)
class ShortConvolution(Mixer):
    """Gated short convolution: out = W_out (c * convolution(b * u)), where b, c, u = split(W_in x).

    Its state is the last W - 1 inputs of the convolution, in the dtype of the model.
    """

    def __init__(self, dims: Dims, *, kernel: Kernel = 4) -> None:
        super().__init__()
        self.dim = dims.dim
        self.w_in = nn.Linear(dims.dim, 3 * dims.dim, bias=False)
        self.convolution = CausalConvolution(dims.dim, kernel)
        self.w_out = Linear(dims.dim, dims.dim, bias=False)

    def fields(self) -> dict[str, StateField]:
        return {"tail": StateField((self.convolution.kernel - 1, self.dim))}

    def mix(self, x: Tensor, tokens: BlockTokens, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        rows = Compaction(tokens)
        b, c, u = self.w_in(rows.compact(x)).chunk(3, dim=-1)
        out, tail = self.convolution(b * u, state["tail"], rows)
        return rows.restore(self.w_out(c * out)), {"tail": tail}
