"""Caches of attention and of the token shift."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flow.key_values import CacheEntry
from flagformer.flow.layer_cache import ContextCache, LayerCache, Positions
from flagformer.flow.layout import Layout


class KVCache(LayerCache):
    """Cache of one self-attention step, filled from the left: the tensors that the projection declares, each
    [B, heads, capacity, width]; by default keys `k` and values `v`."""

    def __init__(self, entry: CacheEntry) -> None:
        self.entry = entry
        self.positions = dict.fromkeys(entry, Positions(2))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.entry

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.entry = tensors

    def extend(self, new: CacheEntry, start: int, first: int, write_mask: Tensor | None = None) -> CacheEntry:
        """Write T new tokens at `start`, those that are True in `write_mask` [B, T]; None: all. Return the
        tensors of all tokens from `first` on."""
        found = {}
        for name, cache in self.entry.items():
            end = start + new[name].shape[2]
            block = cache[:, :, start:end]
            if write_mask is None:
                block.copy_(new[name])
            else:
                block.copy_(torch.where(write_mask[:, None, :, None], new[name], block))
            found[name] = cache[:, :, first:end]
        return found


class TokenShiftCache(LayerCache):
    """Inputs of the token shift of one step: [B, num_zeros + capacity, D], the first `num_zeros` are 0."""

    def __init__(self, x: Tensor, num_zeros: int) -> None:
        self.x, self.num_zeros = x, num_zeros
        self.positions = {"x": Positions(1, num_zeros)}

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"x": self.x}

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.x = tensors["x"]

    def extend(self, x: Tensor, start: int, write_mask: Tensor | None = None) -> None:
        """Write T new tokens at `start`, those that are True in `write_mask` [B, T]; None: all."""
        block = self.x[:, self.num_zeros + start : self.num_zeros + start + x.shape[1]]
        block.copy_(x if write_mask is None else torch.where(write_mask[..., None], x, block))

    def shifted(self, steps: int, dims: slice, layout: Layout) -> Tensor:
        """The dimensions `dims` of the tokens `steps` positions before those of the layout."""
        first = self.num_zeros + layout.start - steps
        return self.x[:, first : first + layout.length, dims]


class CrossAttentionCache(ContextCache):
    """The tensors of the context that one cross-attention step caches, projected once; by default k and v."""

    def __init__(self) -> None:
        self.entry: CacheEntry | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {} if self.entry is None else self.entry

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.entry = tensors or None
