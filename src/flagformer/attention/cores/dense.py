"""Dense attention: the scores of all pairs of queries and keys."""

from __future__ import annotations

from torch import Tensor

from flagformer.attention.cores import Core
from flagformer.attention.cores.block_sparse import MAPS
from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.attention.z_loss import NAME, add_z_loss
from flagformer.flags import component
from flagformer.flow import AttentionBias, Dims, KeyValues, OutputCollector, SideInputs
from flagformer.ops.borrow import borrow


@component("core", paper="arXiv:1706.03762, section 3.2.1")
class Dense(Core):
    """Attention over all pairs, in one call of the kernel."""

    reads_heads = False
    has_z_loss = True
    path: ScorePipeline  # owned by the kernel

    def __init__(self, kernel: Kernel, path: ScorePipeline, cross: bool, dims: Dims) -> None:
        super().__init__()
        self.kernel = kernel
        borrow(self, {"path": path})

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        kernel = self.kernel
        is_ours = isinstance(kernel, Kernel)
        if _is_recorded(side.collector) or not is_ours:
            bias.dense()
        if is_ours:
            kernel.prepare(bias, side.layout.positions.device)

    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        if side.collector.is_active and _is_recorded(side.collector):
            self._record(q, kv, bias, side)
        return self.kernel(q, kv.k, kv.v, bias)

    def _record(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> None:
        """Record attention weights and z-loss, which fused kernels do not compute."""
        scores = self.path.scores(self.path.qk_logits(q, kv.k), q, kv.k, bias)
        if side.collector.is_loss_requested(NAME):
            add_z_loss(scores, bias, side)
        if side.collector.is_requested(MAPS):
            side.collector.record(MAPS, self.path.probs(scores, bias))


def _is_recorded(collector: OutputCollector) -> bool:
    return collector.is_requested(MAPS) or collector.is_loss_requested(NAME)
