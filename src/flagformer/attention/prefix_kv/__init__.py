"""Prefix keys and values: before those of tokens, without position, allowed for every query."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from flagformer.flow import KeyValues


class PrefixKV(nn.Module, ABC):
    """Contract of the slot `prefix_kv`, built as `(dims, groups)`; `count` is the number of prefix keys."""

    count: int
    reads_heads = True  # its keys and values have the widths of the heads

    @abstractmethod
    def forward(self, kv: KeyValues, norm: Callable[[Tensor], Tensor]) -> KeyValues:
        """Return `kv` with M keys and values prepended; `norm` is the key norm, [G, M, K] -> [G, M, K]."""
