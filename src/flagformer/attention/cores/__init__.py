"""Cores: which pairs of queries and keys are considered at all."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.flow import DecodeState, KeyValues, SessionState, SideInputs


class Core(nn.Module, ABC):
    """Contract of the slot `core`, built as `(kernel, path, cross, dims)`; it serves `dims.heads` heads."""

    carries = False  # whether scores are handed on to the next sublayer
    makes_z_loss = False  # whether the z-loss is put on the tape where it asks for it
    reads_pairs = True  # whether it reads the pairs of the forward
    reads_terms = False  # whether it reads the terms, in place of pairs of T * S
    turns_at: tuple[int, ...] = ()  # lengths of rows beyond which it computes in another way
    leaks = False  # whether later tokens decide whom an earlier one meets
    makes_losses = False  # whether it puts losses on the tape in training

    def reads_distances(self, device: torch.device) -> bool:
        """Whether this forward takes pairs that are said by a table of distances."""
        return False

    @abstractmethod
    def forward(self, q: Tensor, kv: KeyValues, side: SideInputs) -> Tensor:
        """q [B, H, T, K] -> [B, H, T, V]."""

    def session(self, state: DecodeState, device: torch.device) -> SessionState | None:
        """What one execution step remembers while decoding beside keys and values."""
        return None
