"""Keys and values that no token brought: seated in front, seen by every query, without position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from flagformer.flow import KeyValues


class PrefixKV(nn.Module, ABC):
    """Contract of the slot `prefix_kv`, built as `(dims, groups)`; `count` is the number of prefix keys."""

    count: int

    @abstractmethod
    def forward(self, kv: KeyValues, norm: Callable[[Tensor], Tensor]) -> KeyValues:
        """`kv` with M keys and values in front; `norm` is that of all keys, [G, M, K] -> the same shape."""
