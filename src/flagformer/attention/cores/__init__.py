"""Cores choose the pairs of queries and keys whose scores are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.flow import AttentionBias, DecodeState, KeyValues, LayerCache, SideInputs


class Core(nn.Module, ABC):
    """Contract of the slot `core`, built as `(kernel, path, cross, dims)` for `dims.heads` heads."""

    carries = False  # whether scores are passed to the next sublayer
    has_z_loss = False  # whether it adds the z-loss on request
    path_changes_at: tuple[int, ...] = ()  # row lengths beyond which its algorithm changes
    is_acausal = False  # whether later tokens change the keys of earlier queries
    acausal_flag = "core"  # the flag that sets `is_acausal`
    has_aux_loss = False  # whether it adds losses in training
    reads_heads = True  # whether it needs keys and values of the heads' widths, or those before the rotation

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        """Make the forms of `bias` that `forward` reads, before the executor runs."""
        bias.dense()

    @abstractmethod
    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        """q [B, H, T, K] -> [B, H, T, V]; `bias` includes the window and prefix keys of this sublayer."""

    def init_cache(self, state: DecodeState, device: torch.device) -> LayerCache | None:
        """Return the cache of one execution step, in addition to keys and values; None if there is none."""
        return None
