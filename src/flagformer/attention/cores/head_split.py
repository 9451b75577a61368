"""Several cores in one attention, each for some of the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.cores import Core
from flagformer.attention.cores.block_sparse import MAPS
from flagformer.flow import AttentionBias, DecodeState, KeyValues, LayerCache, SideInputs


class HeadSplit(Core):
    """Splits the heads among cores, in order.

    Components that mix or weigh heads (talking heads, sinks) apply to the heads of each core separately.

    Args:
        parts: each core and its number of heads.
    """

    cores: Sequence[Core]

    def __init__(self, parts: Sequence[tuple[Core, int]]) -> None:
        super().__init__()
        self.cores = nn.ModuleList(core for core, _ in parts)  # type: ignore[assignment]
        ends = accumulate(heads for _, heads in parts)
        self.slices = [slice(end - heads, end) for end, (_, heads) in zip(ends, parts)]
        self.has_z_loss = all(core.has_z_loss for core, _ in parts)
        self.is_acausal = any(core.is_acausal for core, _ in parts)
        self.acausal_flag = parts[-1][0].acausal_flag
        self.has_aux_loss = any(core.has_aux_loss for core, _ in parts)
        self.reads_heads = any(getattr(core, "reads_heads", True) for core, _ in parts)

    @property
    def kernel(self) -> Any:
        """The kernel of the last core; all cores have kernels of one class."""
        return self.cores[-1].kernel

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        for core, heads in zip(self.cores, self.slices):
            core.prepare(bias.of_heads(heads), side)

    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        outs, maps = [], []
        for core, heads in zip(self.cores, self.slices):
            collector = side.collector.fork()
            core_side = replace(side, collector=collector)
            outs.append(core(q[:, heads], kv.of_heads(heads, q.shape[1]), bias.of_heads(heads), core_side))
            side.collector.add_losses(collector.losses)
            maps += collector.recorded.get(MAPS, [])
        if maps:
            side.collector.record(MAPS, torch.cat(maps, dim=1))
        return torch.cat(outs, dim=1)

    def init_cache(self, state: DecodeState, device: torch.device) -> LayerCache | None:
        found = (core.init_cache(state, device) for core in self.cores)
        return next((session for session in found if session is not None), None)
