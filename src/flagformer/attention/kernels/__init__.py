"""The arithmetic of attention. A kernel declares what it honours; the fastest that serves is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.flow import Pairs


class Kernel(nn.Module, ABC):
    """Contract of the slot `kernel`, built as `(path)`: the scale and the written-out way to weights."""

    reason = "given"  # why it was chosen, for `explain`

    def reads_distances(self, device: torch.device) -> bool:
        """Whether this forward takes pairs that are said by a table of distances."""
        return False

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs) -> Tensor:
        """q [B, H, T, K], k [B, G, seats + S, K], v [B, G, seats + S, V] -> [B, H, T, V]."""
