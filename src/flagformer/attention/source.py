"""Where queries, keys and values come from: a model's own tokens, or a context."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.attention.qk_norm import QKNorm
from flagformer.flow import ContextCache, DecodeState, KeyValues, KVCache, SessionState, SideInputs
from flagformer.position import Rotation


class Source(nn.Module, ABC):
    """(x, side) -> q and the keys and values it may meet, normed, turned and remembered."""

    qk_norm: QKNorm

    @abstractmethod
    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]: ...

    @abstractmethod
    def session(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> SessionState:
        """What one execution step remembers while decoding."""


class OwnTokens(Source):
    """Self-attention: all three from x; while decoding, keys and values join those of earlier tokens."""

    def __init__(self, projection: Projection, qk_norm: QKNorm, rotation: Rotation, width: int) -> None:
        super().__init__()
        self.projection, self.qk_norm, self.rotation, self.width = projection, qk_norm, rotation, width

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        q, k, v = self.projection(x)
        content = self.qk_norm.queries(q), self.qk_norm.keys(k)
        q, k = self.rotation(*content, side.angles)
        if side.state is None:
            return q, KeyValues(k, v, content=content, tied=self.projection.tied)
        cache = side.state.steps[side.step]
        assert isinstance(cache, KVCache)
        kv = cache.extend(k, v, side.state.length, side.state.oldest())
        return q, kv._replace(content=content, tied=self.projection.tied)

    def session(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> KVCache:
        shape = (state.batch, self.projection.groups, state.capacity, self.width)
        return KVCache(
            torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device)
        )


class ContextTokens(Source):
    """Cross-attention: queries from x, the rest from the context, once a decoding session."""

    def __init__(self, projection: Projection, qk_norm: QKNorm) -> None:
        super().__init__()
        self.projection, self.qk_norm = projection, qk_norm

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        q = self.qk_norm.queries(self.projection.queries(x))
        if side.state is None:
            return q, self._entries(side)
        cache = side.state.steps[side.step]
        assert isinstance(cache, ContextCache)
        if cache.entries is None:
            cache.entries = self._entries(side)
        return q, cache.entries

    def _entries(self, side: SideInputs) -> KeyValues:
        assert side.context is not None
        k, v = self.projection.keys(side.context)
        return KeyValues(self.qk_norm.keys(k), v)

    def session(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> ContextCache:
        return ContextCache()
