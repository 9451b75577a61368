"""Queries, keys and values of self-attention and of cross-attention, with their caches."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.attention.qk_norm import QKNorm
from flagformer.attention.window import SlidingWindowSlot
from flagformer.flow import (
    CrossAttentionCache,
    DecodeState,
    Dims,
    KeyValues,
    KVCache,
    LayerCache,
    MaskRule,
    SideInputs,
)
from flagformer.ops.borrow import borrow
from flagformer.position import CosSin, Rotation


class QKVSource(nn.Module, ABC):
    """(x, side) -> queries, keys and values, normed and rotated, with those of the cache."""

    projection: Projection
    qk_norm: QKNorm
    is_cross = False
    window: int | None = None  # number of last tokens a query attends to; None: all
    window_rules: tuple[MaskRule, ...] = ()

    @abstractmethod
    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]: ...

    def __init__(self, projection: Projection, qk_norm: QKNorm, dims: Dims) -> None:
        super().__init__()
        self.projection, self.qk_norm = projection, qk_norm
        # key/value heads G, and the widths K and V of a cached token in each
        self.cache_shape = (projection.groups, dims.dim_head, dims.dim_value)

    @abstractmethod
    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """Return the cache of one execution step."""


class SelfAttentionInputs(QKVSource):
    """Queries, keys and values of x; keys and values of earlier tokens precede those of x.

    They come from the decode state, or are projected from Transformer-XL memories in each forward.
    """

    rotation: Rotation  # shared by the layers of the stack with equal ones
    value_rotation: Rotation

    def __init__(
        self,
        projection: Projection,
        qk_norm: QKNorm,
        dims: Dims,
        rotation: Rotation,
        value_rotation: Rotation,
        rotation_idx: int,
        window: SlidingWindowSlot,
    ) -> None:
        super().__init__(projection, qk_norm, dims)
        self.window, self.window_rules, self.rotation_idx = window.width, window.rules, rotation_idx
        borrow(self, {"rotation": rotation, "value_rotation": value_rotation})
        self.path_changes_at = () if window.width is None else (window.width,)

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        q, k, v = self.projection(x)
        unrotated = self.qk_norm.queries(q), self.qk_norm.keys(k)
        cos_sin = side.cos_sin[self.rotation_idx]
        q, k = self.rotation.both(*unrotated, cos_sin)
        v = self.value_rotation.keys(v, cos_sin)
        if side.memory is not None and side.memory.mem is not None:
            unrotated_mem, mem_k, mem_v = self._project_memory(
                side.memory.mem, side.memory.cos_sin[self.rotation_idx]
            )
            k, v = torch.cat([mem_k, k], dim=2), torch.cat([mem_v, v], dim=2)
            unrotated = unrotated[0], torch.cat([unrotated_mem, unrotated[1]], dim=2)
        state = side.state
        if state is not None:
            cache = state.attention_caches[side.step]
            assert isinstance(cache, KVCache)
            k, v = cache.extend(k, v, state.length, state.window_start(self.window), state.write_mask)
        return q, KeyValues(k, v, 0, unrotated, self.projection.shared_qk)

    def _project_memory(self, mem: Tensor, cos_sin: CosSin | None) -> tuple[Tensor, Tensor, Tensor]:
        """Memories [B, M, D] -> keys [B, G, M, K] before and after the rotation, and values [B, G, M, V]."""
        _, k, v = self.projection(mem)
        k = self.qk_norm.keys(k)
        return k, self.rotation.keys(k, cos_sin), self.value_rotation.keys(v, cos_sin)

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> KVCache:
        groups, *widths = self.cache_shape
        shapes = [(state.batch, groups, state.capacity, width) for width in widths]
        return KVCache(*[torch.empty(shape, dtype=dtype, device=device) for shape in shapes])


class CrossAttentionInputs(QKVSource):
    """Queries of x; keys and values of the context, projected once per decoding session."""

    is_cross = True

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
