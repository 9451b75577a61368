"""Every query considers every key that its mask allows."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.attention.cores import Core
from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.attention.z_loss import NAME, add_z_loss
from flagformer.flags import component
from flagformer.flow import Dims, KeyValues, Pairs, SideInputs
from flagformer.ops.borrow import borrow


@component("core", paper="arXiv:1706.03762, section 3.2.1")
class Dense(Core):
    """All pairs, in one call of the kernel."""

    has_z_loss = True
    path: ScorePipeline  # the written-out way to weights, which the kernel owns

    def __init__(self, kernel: Kernel, path: ScorePipeline, cross: bool, dims: Dims) -> None:
        super().__init__()
        self.kernel, self.cross = kernel, cross
        borrow(self, {"path": path})

    def reads_distances(self, device: torch.device) -> bool:
        return isinstance(self.kernel, Kernel) and self.kernel.reads_distances(device)

    def forward(self, q: Tensor, kv: KeyValues, side: SideInputs) -> Tensor:
        pairs = (side.context_pairs if self.cross else side.pairs)[kv.sight]
        if kv.shared_qk:
            pairs = pairs.apart(q.shape[2], kv.k.shape[2] - kv.num_prefix_kv, q.device)
        if side.collector.is_active:
            self._tell(q, kv, pairs, side)
        return self.kernel(q, kv.k, kv.v, pairs)

    def _tell(self, q: Tensor, kv: KeyValues, pairs: Pairs, side: SideInputs) -> None:
        """What the collector asks for, beside the kernel, which may be one that never forms it."""
        if not (side.collector.is_requested("attn.weights") or side.collector.is_loss_requested(NAME)):
            return
        scores = self.path.scores(self.path.qk_logits(q, kv.k), q, kv.k, pairs)
        if side.collector.is_loss_requested(NAME):
            add_z_loss(scores, pairs, side)
        if side.collector.is_requested("attn.weights"):
            side.collector.record("attn.weights", self.path.probs(scores, pairs))
