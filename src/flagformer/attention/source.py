"""Where queries, keys and values come from: a model's own tokens, or a context."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.attention.qk_norm import QKNorm
from flagformer.flow import CrossAttentionCache, DecodeState, Dims, KeyValues, KVCache, LayerCache, SideInputs
from flagformer.ops.borrow import borrow
from flagformer.position import Rotation


class QKVSource(nn.Module, ABC):
    """(x, side) -> q and the keys and values it may meet, normed, turned and remembered."""

    projection: Projection
    qk_norm: QKNorm
    window: int | None = None  # how many of the last tokens a query sees; None: all

    @abstractmethod
    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]: ...

    def __init__(self, projection: Projection, qk_norm: QKNorm, dims: Dims) -> None:
        super().__init__()
        self.projection, self.qk_norm = projection, qk_norm
        # key/value heads G, and the widths K and V of what a token leaves in each
        self.cache_shape = (projection.groups, dims.dim_head, dims.dim_value)

    @abstractmethod
    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """What one execution step remembers while decoding."""


class SelfAttentionInputs(QKVSource):
    """Self-attention: all three from x; keys and values join those of earlier tokens.

    While decoding these are in the state; memories of segments before are projected anew.
    """

    rotation: Rotation  # the stack's own, both
    value_rotation: Rotation

    def __init__(
        self,
        projection: Projection,
        qk_norm: QKNorm,
        dims: Dims,
        rotation: Rotation,
        value_rotation: Rotation,
        window: int | None,
    ) -> None:
        super().__init__(projection, qk_norm, dims)
        self.window = window
        borrow(self, {"rotation": rotation, "value_rotation": value_rotation})
        self.path_changes_at = () if window is None else (window,)

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        q, k, v = self.projection(x)
        content = self.qk_norm.queries(q), self.qk_norm.keys(k)
        q, k = self.rotation.both(*content, side.cos_sin)
        v = self.value_rotation.keys(v, side.cos_sin)
        if side.mem is not None:
            earlier, earlier_k, earlier_v = self._project_memory(side.mem, side)
            k, v = torch.cat([earlier_k, k], dim=2), torch.cat([earlier_v, v], dim=2)
            content = content[0], torch.cat([earlier, content[1]], dim=2)
        state = side.state
        if state is not None:
            cache = state.attention_caches[side.step]
            assert isinstance(cache, KVCache)
            k, v = cache.extend(k, v, state.length, state.window_start(self.window), state.write_mask)
        return q, KeyValues(k, v, 0, self.window, content, self.projection.shared_qk)

    def _project_memory(self, earlier: Tensor, side: SideInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Keys [B, G, M, K] of memories [B, M, D] before and behind the rotation, and values [B, G, M, V]."""
        _, k, v = self.projection(earlier)
        content = self.qk_norm.keys(k)
        keys = self.rotation.keys(content, side.mem_cos_sin)
        return content, keys, self.value_rotation.keys(v, side.mem_cos_sin)

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> KVCache:
        groups, *widths = self.cache_shape
        shapes = [(state.batch, groups, state.capacity, width) for width in widths]
        return KVCache(*[torch.empty(shape, dtype=dtype, device=device) for shape in shapes])


class CrossAttentionInputs(QKVSource):
    """Cross-attention: queries from x, the rest from the context, once a decoding session."""

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        q = self.qk_norm.queries(self.projection.queries(x))
        if side.state is None:
            return q, self._entries(side)
        cache = side.state.attention_caches[side.step]
        assert isinstance(cache, CrossAttentionCache)
        if cache.entries is None:
            cache.entries = self._entries(side)
        return q, cache.entries

    def _entries(self, side: SideInputs) -> KeyValues:
        assert side.context is not None
        k, v = self.projection.keys(side.context)
        return KeyValues(self.qk_norm.keys(k), v)

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> CrossAttentionCache:
        return CrossAttentionCache()
