"""Queries, keys and values of self-attention and of cross-attention, with their caches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.attention.qk_norm import QKNorm
from flagformer.attention.qk_norm.norms import NoQKNorm
from flagformer.attention.value_mods import ValueMod
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
from flagformer.ops.identity import as_module
from flagformer.position import CosSin, Rotation
from flagformer.position.none import NoRotation


class QKVSource(nn.Module, ABC):
    """(x, side) -> queries, keys and values, normed and rotated, with those of the cache."""

    projection: Projection
    qk_norm: QKNorm
    is_cross = False
    window: int | None = None  # number of last tokens a query attends to; None: all
    window_rules: tuple[MaskRule, ...] = ()
    core_reads_heads = True  # whether the core needs keys of the heads, also before the rotation
    absorbs = False  # whether all that reads keys and values takes those of `projection.absorb`

    @abstractmethod
    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]: ...

    def __init__(self, projection: Projection, qk_norm: QKNorm, dims: Dims, turns_keys: bool = False) -> None:
        """`turns_keys`: whether a rotation parts keys from shared values."""
        super().__init__()
        self.projection, self.qk_norm = projection, qk_norm
        widths = projection.entry_widths
        self.expands = widths is not None  # keys and values from the cache
        self.derives_keys = projection.shared_kv and (turns_keys or not isinstance(qk_norm, NoQKNorm))
        if widths is None:
            widths = {"k": dims.dim_head, "v": dims.dim_value}
            if projection.shared_kv:
                widths = {"kv" if self.derives_keys else "k": dims.dim_head}
        self.entry_widths = dict(widths)
        # heads, and the widths of the tensors that are cached for a token in each
        named = widths.items() if self.expands else widths.values()
        self.cache_shape: tuple[Any, ...] = (1 if self.expands else projection.groups, *named)

    @abstractmethod
    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """Return the cache of one execution step."""

    def expanded(self, q: Tensor, entry: CacheEntry) -> tuple[Tensor, KeyValues]:
        """Queries, and the keys and values of an entry of a projection that `expands`."""
        absorbed = self.projection.absorb(q, entry) if self.absorbs else None
        if absorbed is None:
            return q, KeyValues(*self.projection.expand(entry))
        q, cached = absorbed
        return q, KeyValues(cached, cached, absorbed=True)


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
        value_mods: Sequence[ValueMod] = (),
    ) -> None:
        turns_keys = rotation is not None and value_rotation is not rotation and rotation.width > 0
        super().__init__(projection, qk_norm, dims, turns_keys)
        self.window, self.window_rules, self.rotation_idx = window.width, window.rules, rotation_idx
        borrow(self, {"rotation": rotation, "value_rotation": value_rotation})
        self.norms_turned = getattr(qk_norm, "after_rotation", False)  # a norm of the user's may not say it
        self.modifies_values = bool(value_mods)
        self.value_mods = nn.ModuleList(map(as_module, value_mods))
        self.path_changes_at = () if window.width is None else (window.width,)

    def forward(self, x: Tensor, side: SideInputs) -> tuple[Tensor, KeyValues]:
        if self.expands and side.state is not None:
            return self._expanded(x, side, side.state)
        projection = self.projection
        q, k, v = projection(x)
        if self.modifies_values:
            for value_mod in self.value_mods:
                v = value_mod(v, x, side)
        raw = v
        cos_sin = side.cos_sin[self.rotation_idx]
        q, k, unrotated = self._normed_and_rotated(q, k, cos_sin)
        if type(self.value_rotation) is not NoRotation:
            v = self.value_rotation.keys(v, cos_sin)
        if side.memory is not None and side.memory.mem is not None:
            unrotated_mem, mem_k, mem_v = self._project_memory(
                side.memory.mem, side.memory.cos_sin[self.rotation_idx]
            )
            k, v = torch.cat([mem_k, k], dim=2), torch.cat([mem_v, v], dim=2)
            unrotated = unrotated[0], torch.cat([unrotated_mem, unrotated[1]], dim=2)
        state = side.state
        if state is not None:
            if self.derives_keys:
                k, v = self._derived(self._extend({"kv": raw}, state, side.step)["kv"], side)
            else:
                new = {"k": k, "v": v} if "v" in self.entry_widths else {"k": k}
                entry = self._extend(new, state, side.step)
                k, v = entry["k"], entry.get("v", entry["k"])
        return q, KeyValues(k, v, 0, unrotated, projection.shared_qk)

    def _normed_and_rotated(
        self, q: Tensor, k: Tensor, cos_sin: CosSin | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Queries and keys, normed and rotated, and both before the rotation."""
        qk_norm = self.qk_norm
        if not self.norms_turned and type(qk_norm) is not NoQKNorm:
            q, k = qk_norm.queries(q), qk_norm.keys(k)
        unrotated = q, q if self.projection.shared_qk else k  # with shared QK, a token has one cluster
        q, k = self.rotation.both(q, k, cos_sin)
        if self.norms_turned:
            q, k = qk_norm.queries(q), qk_norm.keys(k)
        return q, k, unrotated

    def _keys(self, k: Tensor, cos_sin: CosSin | None) -> Tensor:
        """Keys, normed and rotated."""
        if self.norms_turned:
            return self.qk_norm.keys(self.rotation.keys(k, cos_sin))
        return self.rotation.keys(self.qk_norm.keys(k), cos_sin)

    def _derived(self, cached: Tensor, side: SideInputs) -> tuple[Tensor, Tensor]:
        """Keys and values of the tensor that is both before norm and rotation."""
        cos_sin = side.cached_cos_sin[self.rotation_idx]
        if cos_sin is not None:  # those of the window
            cos_sin = tuple(part[:, :, part.shape[2] - cached.shape[2] :] for part in cos_sin)
        return self._keys(cached, cos_sin), self.value_rotation.keys(cached, cos_sin)

    def _expanded(self, x: Tensor, side: SideInputs, state: DecodeState) -> tuple[Tensor, KeyValues]:
        """Keys and values that are expanded from the cache, where the rotary part is rotated already."""
        unrotated, entry = self.projection.cache_entry(x)
        keys = self.projection.expand(entry)[0] if self.core_reads_heads else None
        cos_sin, name = side.cos_sin[self.rotation_idx], self.projection.rotary_part
        entry = {**entry, name: self._rotated(entry[name], cos_sin)}
        q, kv = self.expanded(
            self.rotation.queries(unrotated, cos_sin), self._extend(entry, state, side.step)
        )
        return q, kv if keys is None else kv._replace(unrotated_qk=(unrotated, keys))

    def _rotated(self, part: Tensor, cos_sin: CosSin | None) -> Tensor:
        """Rotate the dims of a cached tensor [B, 1, T, W] that are the first dims of all keys."""
        dims = self.projection.rotary_dims
        if dims is None:
            return self.rotation.keys(part, cos_sin)
        if not dims:
            return part
        return torch.cat([self.rotation.keys(part[..., :dims], cos_sin), part[..., dims:]], dim=3)

    def _extend(self, entry: CacheEntry, state: DecodeState, step: int) -> CacheEntry:
        """Cache the tensors of new tokens; return those of all tokens in the window."""
        cache = state.attention_caches[step]
        assert isinstance(cache, KVCache)
        return cache.extend(entry, state.length, state.window_start(self.window), state.write_mask)

    def _project_memory(self, mem: Tensor, cos_sin: CosSin | None) -> tuple[Tensor, Tensor, Tensor]:
        """Memories [B, M, D] -> keys [B, G, M, K] before the rotation (queries, with shared QK) and after it,
        and values [B, G, M, V]."""
        q, k, v = self.projection(mem)
        normed = k if self.norms_turned else self.qk_norm.keys(k)
        unrotated = normed
        if self.projection.shared_qk:
            unrotated = q if self.norms_turned else self.qk_norm.queries(q)
        turned = self.rotation.keys(normed, cos_sin)
        turned = self.qk_norm.keys(turned) if self.norms_turned else turned
        return unrotated, turned, self.value_rotation.keys(v, cos_sin)

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
            entry = self._entry(side)
            cache.entry = {name: tensor.contiguous() for name, tensor in entry.items()}
        if self.expands:
            return self.expanded(q, cache.entry)
        k = self.qk_norm.keys(cache.entry["kv"]) if self.derives_keys else cache.entry["k"]
        return q, KeyValues(k, cache.entry[tuple(cache.entry)[-1]])

    def _keys_values(self, side: SideInputs) -> tuple[Tensor, Tensor]:
        assert side.context is not None
        k, v = self.projection.keys(side.context)
        return self.qk_norm.keys(k), v

    def _entry(self, side: SideInputs) -> CacheEntry:
        assert side.context is not None
        if self.expands:
            return self.projection.context_entry(side.context)
        if self.derives_keys:
            return {"kv": self.projection.keys(side.context)[1]}
        k, v = self._keys_values(side)
        return {"k": k, "v": v} if "v" in self.entry_widths else {"k": k}

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> CrossAttentionCache:
        return CrossAttentionCache()
