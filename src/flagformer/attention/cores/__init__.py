"""Cores: which pairs of queries and keys are considered at all."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.flow import DecodeState, KeyValues, LayerCache, SideInputs


class Core(nn.Module, ABC):
    """Contract of the slot `core`, built as `(kernel, path, cross, dims)`; it serves `dims.heads` heads."""

    carries = False  # whether scores are handed on to the next sublayer
    has_z_loss = False  # whether the z-loss is put on the collector where it asks for it
    reads_pairs = True  # whether it reads the pairs of the forward
    reads_terms = False  # whether it reads the terms, in place of pairs of T * S
    path_changes_at: tuple[int, ...] = ()  # lengths of rows beyond which it computes in another way
    is_acausal = False  # whether later tokens decide whom an earlier one meets
    has_aux_loss = False  # whether it puts losses on the collector in training

    def reads_distances(self, device: torch.device) -> bool:
        """Whether this forward takes pairs that are said by a table of distances."""
        return False

    @abstractmethod
    def forward(self, q: Tensor, kv: KeyValues, side: SideInputs) -> Tensor:
        """q [B, H, T, K] -> [B, H, T, V]."""

    def init_cache(self, state: DecodeState, device: torch.device) -> LayerCache | None:
        """What one execution step remembers while decoding beside keys and values."""
        return None
