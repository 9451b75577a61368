"""One decoding session: preallocated, written in place, without gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from flagformer.flow.interleave import InsertionPattern
from flagformer.flow.key_values import KeyValues
from flagformer.flow.layout import Layout
from flagformer.flow.mask import narrowest


class LayerCache(Protocol):
    """What one component remembers between blocks of tokens."""

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was (beam search)."""

    def gather_positions(self, source: Tensor) -> None:
        """Place p of each row becomes what place source[b, p] was, -1: empty; source [B, S] long."""

    def size_bytes(self) -> int:
        """Memory held."""


class KVCache:
    """One self-attention step: keys [B, G, capacity, K], values [B, G, capacity, V], filled from the left."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def extend(
        self, k: Tensor, v: Tensor, start: int, first: int, fresh: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Writes T new entries at `start`, only those that are True in `fresh` [B, T]; returns the keys and
        values from `first` on."""
        end = start + k.shape[2]
        for held, new in ((self.k, k), (self.v, v)):
            place = held[:, :, start:end]
            place.copy_(new if fresh is None else torch.where(fresh[:, None, :, None], new, place))
        return self.k[:, :, first:end], self.v[:, :, first:end]

    def reorder(self, index: Tensor) -> None:
        self.k.copy_(self.k.index_select(0, index))
        self.v.copy_(self.v.index_select(0, index))

    def gather_positions(self, source: Tensor) -> None:
        for held in (self.k, self.v):
            wide = source.clamp(min=0)[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3])
            held[:, :, : source.shape[1]] = held.gather(2, wide)  # no query sees an empty place

    def size_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


class TokenShiftCache:
    """What tokens were at the entry of one step: [B, room + capacity, D], with `room` zeros in front.

    All of them are kept, so that `truncate` needs no care.
    """

    def __init__(self, x: Tensor, room: int) -> None:
        self.x, self.num_zeros = x, room

    def extend(self, x: Tensor, start: int, fresh: Tensor | None = None) -> None:
        """Writes T new tokens at `start`, only those that are True in `fresh` [B, T]."""
        held = self.x[:, self.num_zeros + start : self.num_zeros + start + x.shape[1]]
        held.copy_(x if fresh is None else torch.where(fresh[..., None], x, held))

    def shifted(self, steps: int, dims: slice, layout: Layout) -> Tensor:
        """These dimensions of the tokens that stand so many places before those of the layout."""
        first = self.num_zeros + layout.start - steps
        return self.x[:, first : first + layout.length, dims]

    def reorder(self, index: Tensor) -> None:
        self.x.copy_(self.x.index_select(0, index))

    def gather_positions(self, source: Tensor) -> None:
        wide = source[..., None].expand(-1, -1, self.x.shape[2])
        held = self.x[:, self.num_zeros :]
        held[:, : source.shape[1]] = held.gather(1, wide.clamp(min=0)).masked_fill(wide < 0, 0.0)

    def size_bytes(self) -> int:
        return self.x.nbytes


class CrossAttentionCache:
    """Keys and values of one cross-attention step, projected once."""

    def __init__(self) -> None:
        self.entries: KeyValues | None = None

    def reorder(self, index: Tensor) -> None:
        if self.entries is not None:
            k, v = self.entries.k.index_select(0, index), self.entries.v.index_select(0, index)
            self.entries = KeyValues(k, v)

    def gather_positions(self, source: Tensor) -> None:
        """A context does not move with the tokens that read it."""

    def size_bytes(self) -> int:
        return 0 if self.entries is None else self.entries.k.nbytes + self.entries.v.nbytes


class DecodeState:
    """The memory of a decoding session, built by `model.init_state(batch, length)`.

    Attributes:
        batch: rows.
        capacity: how many tokens fit.
        length: how many tokens it holds.
        window: every query sees at most this many of the last tokens; None: all.
        first: [B] long, the place of each row's first real token; None without left padding.
        bias_row: [H, capacity + 1], the position biases of the distances capacity ... 0; None for no bias.
            The first is never read: a slice that is never the whole row is one case for a compiled graph.
        signature: kind, key/value heads G and their widths K and V at each execution step of the stack that
            made it.
        prefix: [B] or [1] long, how many first tokens of each row all tokens see; None without a prefix.
        steps: what attention remembers, by execution step (tied modules run at several).
        entries: what the entries of sublayers remember, likewise.
        cores: what cores remember beside keys and values, likewise.
        context_layout: standing of the context's tokens, once a forward has brought one.
        pattern: how memory tokens stand among the others; None where all are tokens.
        prepended: how many entries behind the first memory are prepended embeddings, one number or [B, 1].
        fresh: [B, T] bool, what of the coming block is new; False: its place holds an older token, which
            stays. None: all.
    """

    # no dataclass: FSDP2 gives a sharded module copies of those, and a session is written to

    def __init__(
        self,
        batch: int,
        capacity: int,
        window: int | None = None,
        first: Tensor | None = None,
        signature: tuple[tuple[str, int, int, int], ...] = (),
    ) -> None:
        self.batch, self.capacity, self.window, self.row_starts = batch, capacity, window, first
        self.signature = signature
        self.length = 0
        self.prefix: Tensor | None = None
        self.relative_bias: Tensor | None = None
        self.attention_caches: dict[int, LayerCache] = {}
        self.input_mixer_caches: dict[int, LayerCache] = {}
        self.core_caches: dict[int, LayerCache] = {}
        self.context_layout: Layout | None = None
        self.pattern: InsertionPattern | None = None
        self.prepended: Tensor | int = 0
        self.write_mask: Tensor | None = None

    @property
    def layer_caches(self) -> tuple[LayerCache, ...]:
        """All that is remembered."""
        return (
            *self.attention_caches.values(),
            *self.input_mixer_caches.values(),
            *self.core_caches.values(),
        )

    def layout(self, start: int, length: int, device: torch.device) -> Layout:
        """The standing of tokens start ... start + length."""
        if self.row_starts is None:
            layout = Layout.arange(length, device, start)
        else:
            layout = Layout.left_padded(self.row_starts, length, start)
        if self.pattern is None:
            return layout
        return replace(layout, always_visible=self.pattern.always_visible(layout.positions, self.prepended))

    def last_query_bias(self, keys: int) -> Tensor | None:
        """[1, H, 1, S], the bias of the newest token against the last S; None for no bias."""
        return (
            None
            if self.relative_bias is None
            else self.relative_bias[None, :, None, self.capacity + 1 - keys :]
        )

    def window_start(self, window: int | None = None) -> int:
        """The first place that the next query may still see, by the session's window and a sublayer's own."""
        width = narrowest(self.window, window)
        return 0 if width is None or self.pattern is not None else max(0, self.length + 1 - width)

    def read_prefix(self, prefix: Tensor, block: int) -> None:
        """Remembers the prefix that the first block of tokens brings, whole."""
        check_prefix(prefix, self.row_starts, self.length, block)
        self.prefix = prefix

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was (beam search); index [B] long."""
        check_rows(index, self.batch)
        if self.prefix is not None and len(self.prefix) > 1:
            self.prefix = self.prefix.index_select(0, index)
        if isinstance(self.prepended, Tensor):
            self.prepended = self.prepended.index_select(0, index)
        for step in self.layer_caches:
            step.reorder(index)
        if self.row_starts is not None:
            self.row_starts = self.row_starts.index_select(0, index)
        if self.context_layout is not None and self.context_layout.valid is not None:
            padding = self.context_layout.valid.index_select(0, index)
            self.context_layout = Layout(self.context_layout.positions, padding)

    def gather_positions(self, source: Tensor) -> None:
        """Place p of each row becomes what place source[b, p] was, -1: empty; source [B, S] long."""
        for step in self.layer_caches:
            step.gather_positions(source)

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on (a rejected speculation)."""
        check_kept(length, self.length, self.prefix, self.row_starts)
        self.length = length

    def size_bytes(self) -> int:
        return sum(step.size_bytes() for step in self.layer_caches)


def check_prefix(prefix: Tensor, first: Tensor | None, held: int, block: int) -> None:
    """A prefix comes whole, with the first block of tokens."""
    if held:
        raise ValueError(
            "`prefix_attn_len` belongs to the first block of a decoding session, but `state` holds "
            f"{held} tokens already: leave it out, the state remembers it"
        )
    ends = prefix if first is None else prefix + first
    if not torch.compiler.is_compiling() and (longest := int(ends.max())) > block:
        raise ValueError(
            f"`prefix_attn_len` reaches to token {longest}, but the first block has {block}: give the "
            "whole prefix at once, as its tokens see each other"
        )


def check_kept(length: int, held: int, prefix: Tensor | None, first: Tensor | None) -> None:
    """How many tokens a truncation keeps: of those that are there, all of the prefix."""
    if length < 0 or length > held:
        raise ValueError(f"`length` must be between 0 and the state's {held}, but is {length}")
    if prefix is not None:
        end = int((prefix if first is None else prefix + first).max())
        if length < end:
            raise ValueError(f"`length` must keep the prefix, {end} tokens, but is {length}")


def check_rows(index: Tensor, batch: int) -> None:
    """[B] row numbers."""
    if index.dtype not in (torch.int64, torch.int32) or tuple(index.shape) != (batch,):
        text = f"{batch} row numbers, but is {index.dtype} of shape {list(index.shape)}"
        raise ValueError(f"`index` must be {text}")
    if index.device.type == "cpu" and not bool(((index >= 0) & (index < batch)).all()):
        raise ValueError(f"`index` must hold rows from 0 to {batch - 1}, but is {index.tolist()}")
