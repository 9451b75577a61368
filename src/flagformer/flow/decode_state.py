"""Decode state: preallocated caches, written in place, without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from flagformer.flow.interleave import InsertionPattern
from flagformer.flow.key_values import CacheEntry
from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import narrowest


class LayerCache(Protocol):
    """The cache of one component between blocks of tokens."""

    def reorder(self, index: Tensor) -> None:
        """Replace row i by row index[i] (beam search)."""

    def gather_positions(self, source: Tensor) -> None:
        """Replace cache position p of row b by position source[b, p]; -1: empty. source [B, S] long."""

    def size_bytes(self) -> int:
        """Memory in bytes."""


class TruncatedCache(LayerCache, Protocol):
    """A cache without positions, from which tokens are removed by its own method."""

    def truncate(self, row_lengths: Tensor) -> None:
        """Keep the first `row_lengths` [B] valid tokens of each row; ValueError where it cannot."""


class KVCache:
    """Cache of one self-attention step, filled from the left: the tensors that the projection declares, each
    [B, heads, capacity, width]; by default keys `k` and values `v`."""

    def __init__(self, entry: CacheEntry) -> None:
        self.entry = entry

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

    def reorder(self, index: Tensor) -> None:
        for cache in self.entry.values():
            cache.copy_(cache.index_select(0, index))

    def gather_positions(self, source: Tensor) -> None:
        for cache in self.entry.values():
            index = source.clamp(min=0)[:, None, :, None].expand(-1, cache.shape[1], -1, cache.shape[3])
            cache[:, :, : source.shape[1]] = cache.gather(2, index)  # empty positions are masked

    def size_bytes(self) -> int:
        return sum(cache.nbytes for cache in self.entry.values())


class TokenShiftCache:
    """Inputs of the token shift of one step: [B, num_zeros + capacity, D], with `num_zeros` zeros in front.

    The inputs of all tokens are stored, so `truncate` changes nothing here.
    """

    def __init__(self, x: Tensor, num_zeros: int) -> None:
        self.x, self.num_zeros = x, num_zeros

    def extend(self, x: Tensor, start: int, write_mask: Tensor | None = None) -> None:
        """Write T new tokens at `start`, those that are True in `write_mask` [B, T]; None: all."""
        block = self.x[:, self.num_zeros + start : self.num_zeros + start + x.shape[1]]
        block.copy_(x if write_mask is None else torch.where(write_mask[..., None], x, block))

    def shifted(self, steps: int, dims: slice, layout: Layout) -> Tensor:
        """The dimensions `dims` of the tokens `steps` positions before those of the layout."""
        first = self.num_zeros + layout.start - steps
        return self.x[:, first : first + layout.length, dims]

    def reorder(self, index: Tensor) -> None:
        self.x.copy_(self.x.index_select(0, index))

    def gather_positions(self, source: Tensor) -> None:
        index = source[..., None].expand(-1, -1, self.x.shape[2])
        cache = self.x[:, self.num_zeros :]
        cache[:, : source.shape[1]] = cache.gather(1, index.clamp(min=0)).masked_fill(index < 0, 0.0)

    def size_bytes(self) -> int:
        return self.x.nbytes


class CrossAttentionCache:
    """The tensors of the context that one cross-attention step caches, projected once; by default k and v."""

    def __init__(self) -> None:
        self.entry: CacheEntry | None = None

    def reorder(self, index: Tensor) -> None:
        if self.entry is not None:
            self.entry = {name: cache.index_select(0, index) for name, cache in self.entry.items()}

    def gather_positions(self, source: Tensor) -> None:
        """Do nothing: token positions do not affect the context."""

    def size_bytes(self) -> int:
        return 0 if self.entry is None else sum(cache.nbytes for cache in self.entry.values())


class DecodeState:
    """The state of incremental decoding, made by `model.init_state(batch, length)`.

    Attributes:
        batch: number of rows B.
        capacity: maximum number of tokens.
        length: number of tokens stored.
        window: every query attends to at most this many of the last tokens; None: all.
        row_starts: [B] long, the cache position of each row's first valid token; None without left padding.
        relative_bias: [H, capacity + 1], the position bias of the distances capacity ... 0; None for no bias.
            The first is never read, so that a slice is never the whole row, which a compiler specialises.
        signature: kind, heads and widths of the cached tensors (of a mixer, the sizes of its state) at each
            execution step of the stack that made the state.
        prefix: [B] or [1] long, the number of first tokens of each row to which all tokens attend; None
            without a prefix.
        attention_caches: caches of attention, by execution step (tied modules run at several steps).
        input_mixer_caches: caches of input mixers, by execution step.
        core_caches: caches of attention cores other than keys and values, by execution step.
        mixer_caches: states of mixers, by execution step.
        context_layout: layout of the context, after the first forward with a context.
        pattern: where memory tokens are inserted; None for no memory tokens.
        prepended: number of prepended embeddings after the first memory tokens, one number or [B, 1].
        write_mask: [B, T] bool, True for the entries of the next block to write; where it is False the cache
            keeps an older token. None: all.
    """

    # not a dataclass: FSDP2 gives a sharded module copies of dataclasses, and this one is written to

    def __init__(
        self,
        batch: int,
        capacity: int,
        window: int | None = None,
        row_starts: Tensor | None = None,
        signature: tuple[tuple[Any, ...], ...] = (),
        relative_bias: Tensor | None = None,
    ) -> None:
        self.batch, self.capacity, self.window, self.row_starts = batch, capacity, window, row_starts
        self.signature, self.relative_bias = signature, relative_bias
        self.length = 0
        self.prefix: Tensor | None = None
        self.attention_caches: dict[int, LayerCache] = {}
        self.input_mixer_caches: dict[int, LayerCache] = {}
        self.core_caches: dict[int, LayerCache] = {}
        self.mixer_caches: dict[int, TruncatedCache] = {}
        self.context_layout: Layout | None = None
        self.pattern: InsertionPattern | None = None
        self.prepended: Tensor | int = 0
        self.write_mask: Tensor | None = None

    @property
    def layer_caches(self) -> tuple[LayerCache, ...]:
        """All caches."""
        return (
            *self.attention_caches.values(),
            *self.input_mixer_caches.values(),
            *self.core_caches.values(),
            *self.mixer_caches.values(),
        )

    def layout(self, start: int, length: int, device: torch.device) -> Layout:
        """Layout of the tokens start ... start + length."""
        if self.row_starts is None:
            layout = Layout.arange(length, device, start)
        else:
            layout = Layout.left_padded(self.row_starts, length, start)
        if self.pattern is None:
            return layout
        return replace(layout, always_visible=self.pattern.always_visible(layout.positions, self.prepended))

    def last_query_bias(self, keys: int) -> Tensor | None:
        """[1, H, 1, S], the bias of the last query for the last S keys; None for no bias."""
        return (
            None
            if self.relative_bias is None
            else self.relative_bias[None, :, None, self.capacity + 1 - keys :]
        )

    def window_start(self, window: int | None = None) -> int:
        """First cache position within the window of the state and `window`, for the next query."""
        width = narrowest(self.window, window)
        return 0 if width is None or self.pattern is not None else max(0, self.length + 1 - width)

    def advance(self, count: int, prefix: Tensor | None, context: Layout | None) -> None:
        """Count a block of `count` tokens whose keys and values the layers have written.

        Args:
            prefix: given with the first block only; None: unchanged.
            context: layout of the context that cross-attention read; None: there is none.
        """
        self.length += count
        self.context_layout = context
        if prefix is not None:
            self.prefix = prefix

    def reorder(self, index: Tensor) -> None:
        """Replace row i by row index[i] (beam search); index [B] long."""
        check_rows(index, self.batch)
        if self.prefix is not None and len(self.prefix) > 1:
            self.prefix = self.prefix.index_select(0, index)
        if isinstance(self.prepended, Tensor):
            self.prepended = self.prepended.index_select(0, index)
        for cache in self.layer_caches:
            cache.reorder(index)
        if self.row_starts is not None:
            self.row_starts = self.row_starts.index_select(0, index)
        if self.context_layout is not None and self.context_layout.valid is not None:
            valid = self.context_layout.valid.index_select(0, index)
            self.context_layout = Layout(self.context_layout.positions, valid)

    def gather_positions(self, source: Tensor) -> None:
        """Replace cache position p of row b by position source[b, p]; -1: empty. source [B, S] long."""
        for cache in self.layer_caches:
            cache.gather_positions(source)

    def truncate(self, length: int) -> None:
        """Remove all tokens from `length` on (rejected speculative tokens)."""
        check_truncation(length, self.length, self.prefix, self.row_starts)
        first = 0 if self.row_starts is None else self.row_starts
        self.truncate_rows(first, length)
        self.length = length

    def truncate_rows(self, row_starts: Tensor | Sequence[int] | int, end: int) -> None:
        """Remove all tokens from cache position `end` on from caches without positions; row b starts at
        cache position `row_starts[b]`."""
        for cache in self.mixer_caches.values():
            starts = torch.as_tensor(row_starts)
            cache.truncate((end - starts).clamp(min=0).expand(self.batch))

    def size_bytes(self) -> int:
        return sum(cache.size_bytes() for cache in self.layer_caches)


def check_prefix(prefix: Tensor, row_starts: Tensor | None, stored: int, block: int) -> None:
    """Check that the prefix is given whole, with the first block of tokens."""
    if stored:
        raise ValueError(
            "`prefix_attn_len` belongs to the first block of a decode state, but `state` holds "
            f"{stored} tokens already: leave it out, the state holds it"
        )
    ends = prefix if row_starts is None else prefix + row_starts
    if not torch.compiler.is_compiling() and (longest := int(ends.max())) > block:
        raise ValueError(
            f"`prefix_attn_len` reaches to token {longest}, but the first block has {block}: give the "
            "whole prefix in one block, as its tokens attend to each other"
        )


def check_truncation(length: int, stored: int, prefix: Tensor | None, row_starts: Tensor | None) -> None:
    """Check the length after a truncation: at most the present one, and at least the prefix."""
    if length < 0 or length > stored:
        raise ValueError(f"`length` must be between 0 and the state's {stored}, but is {length}")
    if prefix is not None:
        end = int((prefix if row_starts is None else prefix + row_starts).max())
        if length < end:
            raise ValueError(f"`length` must keep the prefix, {end} tokens, but is {length}")


def check_rows(index: Tensor, batch: int) -> None:
    """Check row indices [B]."""
    if index.dtype not in (torch.int64, torch.int32) or tuple(index.shape) != (batch,):
        text = f"{batch} row numbers, but is {index.dtype} of shape {list(index.shape)}"
        raise ValueError(f"`index` must be {text}")
    if index.device.type == "cpu" and not bool(((index >= 0) & (index < batch)).all()):
        raise ValueError(f"`index` must hold rows from 0 to {batch - 1}, but is {index.tolist()}")
