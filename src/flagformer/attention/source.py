"""Queries, keys and values of self-attention and of cross-attention, with their caches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.attention.qk_norm import QKNorm
from flagformer.attention.qk_norm.norms import NoQKNorm
from flagformer.attention.window import SlidingWindowSlot
from flagformer.flow import (
    CacheEntry,
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

    def __init__(self, projection: Projection, qk_norm: QKNorm, dims: Dims, unequal: int = 0) -> None:
        super().__init__()
        self.projection, self.qk_norm = projection, qk_norm
        widths = projection.entry_widths
        self.expands = widths is not None  # keys and values from the cache
        if widths is None:
            # shared values are keys, but for the norm and the first `unequal` dims
            unequal = unequal if isinstance(qk_norm, NoQKNorm) else dims.dim_value
            values = unequal if projection.shared_kv else dims.dim_value
            self.values_are_cached = values == dims.dim_value
            widths = {"k": dims.dim_head, "v": values}
        self.entry_widths = dict(widths)
        # heads, and the widths of the tensors that are cached for a token in each
        named = widths.items() if self.expands else widths.values()
        self.cache_shape: tuple[Any, ...] = (1 if self.expands else projection.groups, *named)

    @abstractmethod
    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """Return the cache of one execution step."""

    def to_cache(self, k: Tensor, v: Tensor) -> CacheEntry:
        """Keys and values after their norm and rotation -> the tensors to cache; not those of `expands`."""
        return {"k": k, "v": v if self.values_are_cached else v[..., : self.entry_widths["v"]]}

    def from_cache(self, entry: CacheEntry) -> tuple[Tensor, Tensor]:
        """The tensors of the cache -> keys and values."""
        if self.expands:
            return self.projection.expand(entry)
        k, v = entry["k"], entry["v"]
        if self.values_are_cached:
            return k, v
        return k, torch.cat([v, k[..., v.shape[3] :]], dim=3) if v.shape[3] else k


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
        # shared values differ from keys in the dims that the rotation turns, unless it turns both
        super().__init__(
            projection, qk_norm, dims, 0 if rotation is None or value_rotation is rotation else rotation.width
        )
        self.window, self.window_rules, self.rotation_idx = window.width, window.rules, rotation_idx
        borrow(self, {"rotation": rotation, "value_rotation": value_rotation})
        self.path_changes_at = () if window.width is None else (window.width,)

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        if self.expands and side.state is not None:
            return self._expanded(x, side, side.state)
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
            k, v = self.from_cache(self._extend(self.to_cache(k, v), state, side.step))
        return q, KeyValues(k, v, 0, unrotated, self.projection.shared_qk)

    def _expanded(self, x: Tensor, side: SideInputs, state: DecodeState) -> tuple[Tensor, KeyValues]:
        """Keys and values that are expanded from the cache, where the rotary part is rotated already."""
        q, entry = self.projection.cache_entry(x)
        unrotated = q, self.projection.expand(entry)[0]
        name = self.projection.rotary_part
        cos_sin = side.cos_sin[self.rotation_idx]
        entry = {**entry, name: self.rotation.keys(entry[name], cos_sin)}
        k, v = self.projection.expand(self._extend(entry, state, side.step))
        return self.rotation.queries(q, cos_sin), KeyValues(k, v, 0, unrotated)

    def _extend(self, entry: CacheEntry, state: DecodeState, step: int) -> CacheEntry:
        """Cache the tensors of new tokens; return those of all tokens in the window."""
        cache = state.attention_caches[step]
        assert isinstance(cache, KVCache)
        return cache.extend(entry, state.length, state.window_start(self.window), state.write_mask)

    def _project_memory(self, mem: Tensor, cos_sin: CosSin | None) -> tuple[Tensor, Tensor, Tensor]:
        """Memories [B, M, D] -> keys [B, G, M, K] before and after the rotation, and values [B, G, M, V]."""
        _, k, v = self.projection(mem)
        k = self.qk_norm.keys(k)
        return k, self.rotation.keys(k, cos_sin), self.value_rotation.keys(v, cos_sin)

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> KVCache:
        heads = self.cache_shape[0]
        shapes = {n: (state.batch, heads, state.capacity, width) for n, width in self.entry_widths.items()}
        return KVCache({n: torch.empty(shape, dtype=dtype, device=device) for n, shape in shapes.items()})


class CrossAttentionInputs(QKVSource):
    """Queries of x; keys and values of the context, projected once per decoding session."""

    is_cross = True

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        q = self.qk_norm.queries(self.projection.queries(x))
        if side.state is None:
            return q, KeyValues(*self._keys_values(side))
        cache = side.state.attention_caches[side.step]
        assert isinstance(cache, CrossAttentionCache)
        if cache.entry is None:
            cache.entry = self._entry(side)
        return q, KeyValues(*self.from_cache(cache.entry))

    def _keys_values(self, side: SideInputs) -> tuple[Tensor, Tensor]:
        assert side.context is not None
        k, v = self.projection.keys(side.context)
        return self.qk_norm.keys(k), v

    def _entry(self, side: SideInputs) -> CacheEntry:
        if self.expands:
            assert side.context is not None
            return self.projection.context_entry(side.context)
        return self.to_cache(*self._keys_values(side))

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> CrossAttentionCache:
        return CrossAttentionCache()
