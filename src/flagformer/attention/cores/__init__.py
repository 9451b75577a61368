"""Cores: which pairs of queries and keys are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.flow import AttentionBias, DecodeState, KeyValues, LayerCache, SideInputs


class Core(nn.Module, ABC):
    """Contract of the slot `core`, built as `(kernel, path, cross, dims)`; it serves `dims.heads` heads."""

    carries = False  # whether scores are passed to the next sublayer
    has_z_loss = False  # whether it adds the z-loss where that is requested
    path_changes_at: tuple[int, ...] = ()  # lengths of rows beyond which it computes in another way
    is_acausal = False  # whether later tokens change which keys an earlier one attends to
    acausal_flag = "core"  # the flag that makes it so
    has_aux_loss = False  # whether it adds losses in training

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        """Makes the forms of `bias` that `forward` reads, before the executor runs."""
        bias.dense()

    @abstractmethod
    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        """q [B, H, T, K] -> [B, H, T, V]; `bias` is that of this sublayer's window and prefix keys."""

    def init_cache(self, state: DecodeState, device: torch.device) -> LayerCache | None:
        """The cache of one execution step, in addition to keys and values; None: it needs none."""
        return None
