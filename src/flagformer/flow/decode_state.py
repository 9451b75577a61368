"""One decoding session: preallocated, written in place, without gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from flagformer.flow.key_values import KeyValues
from flagformer.flow.layout import Layout
from flagformer.flow.mask import narrowest
from flagformer.flow.weave import Pattern


class SessionState(Protocol):
    """What one component remembers between blocks of tokens."""

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was (beam search)."""

    def move(self, source: Tensor) -> None:
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

    def move(self, source: Tensor) -> None:
        for held in (self.k, self.v):
            wide = source.clamp(min=0)[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3])
            held[:, :, : source.shape[1]] = held.gather(2, wide)  # no query sees an empty place

    def size_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


class FeatureCache:
    """What tokens were at the entry of one step: [B, room + capacity, D], with `room` zeros in front.

    All of them are kept, so that `truncate` needs no care.
    """

    def __init__(self, x: Tensor, room: int) -> None:
        self.x, self.room = x, room

    def extend(self, x: Tensor, start: int, fresh: Tensor | None = None) -> None:
        """Writes T new tokens at `start`, only those that are True in `fresh` [B, T]."""
        held = self.x[:, self.room + start : self.room + start + x.shape[1]]
        held.copy_(x if fresh is None else torch.where(fresh[..., None], x, held))

    def before(self, steps: int, dims: slice, layout: Layout) -> Tensor:
        """These dimensions of the tokens that stand so many places before those of the layout."""
        first = self.room + layout.start - steps
        return self.x[:, first : first + layout.length, dims]

    def reorder(self, index: Tensor) -> None:
        self.x.copy_(self.x.index_select(0, index))

    def move(self, source: Tensor) -> None:
        wide = source[..., None].expand(-1, -1, self.x.shape[2])
        held = self.x[:, self.room :]
        held[:, : source.shape[1]] = held.gather(1, wide.clamp(min=0)).masked_fill(wide < 0, 0.0)

    def size_bytes(self) -> int:
        return self.x.nbytes


class ContextCache:
    """Keys and values of one cross-attention step, projected once."""

    def __init__(self) -> None:
        self.entries: KeyValues | None = None

    def reorder(self, index: Tensor) -> None:
        if self.entries is not None:
            k, v = self.entries.k.index_select(0, index), self.entries.v.index_select(0, index)
            self.entries = KeyValues(k, v)

    def move(self, source: Tensor) -> None:
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
        made_for: kind, key/value heads G and their widths K and V at each execution step of the stack that
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
        made_for: tuple[tuple[str, int, int, int], ...] = (),
    ) -> None:
        self.batch, self.capacity, self.window, self.first = batch, capacity, window, first
        self.made_for = made_for
        self.length = 0
        self.prefix: Tensor | None = None
        self.bias_row: Tensor | None = None
        self.steps: dict[int, SessionState] = {}
        self.entries: dict[int, SessionState] = {}
        self.cores: dict[int, SessionState] = {}
        self.context_layout: Layout | None = None
        self.pattern: Pattern | None = None
        self.prepended: Tensor | int = 0
        self.fresh: Tensor | None = None

    @property
    def memories(self) -> tuple[SessionState, ...]:
        """All that is remembered."""
        return (*self.steps.values(), *self.entries.values(), *self.cores.values())

    def layout(self, start: int, length: int, device: torch.device) -> Layout:
        """The standing of tokens start ... start + length."""
        if self.first is None:
            layout = Layout.plain(length, device, start)
        else:
            layout = Layout.left_padded(self.first, length, start)
        if self.pattern is None:
            return layout
        return replace(layout, lasting=self.pattern.lasting(layout.positions, self.prepended))

    def newest_bias(self, keys: int) -> Tensor | None:
        """[1, H, 1, S], the bias of the newest token against the last S; None for no bias."""
        return None if self.bias_row is None else self.bias_row[None, :, None, self.capacity + 1 - keys :]

    def oldest(self, window: int | None = None) -> int:
        """The first place that the next query may still see, by the session's window and a sublayer's own."""
        width = narrowest(self.window, window)
        return 0 if width is None or self.pattern is not None else max(0, self.length + 1 - width)

    def read_prefix(self, prefix: Tensor, block: int) -> None:
        """Remembers the prefix that the first block of tokens brings, whole."""
        check_prefix(prefix, self.first, self.length, block)
        self.prefix = prefix

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was (beam search); index [B] long."""
        check_rows(index, self.batch)
        if self.prefix is not None and len(self.prefix) > 1:
            self.prefix = self.prefix.index_select(0, index)
        if isinstance(self.prepended, Tensor):
            self.prepended = self.prepended.index_select(0, index)
        for step in self.memories:
            step.reorder(index)
        if self.first is not None:
            self.first = self.first.index_select(0, index)
        if self.context_layout is not None and self.context_layout.padding is not None:
            padding = self.context_layout.padding.index_select(0, index)
            self.context_layout = Layout(self.context_layout.positions, padding)

    def move(self, source: Tensor) -> None:
        """Place p of each row becomes what place source[b, p] was, -1: empty; source [B, S] long."""
        for step in self.memories:
            step.move(source)

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on (a rejected speculation)."""
        check_kept(length, self.length, self.prefix, self.first)
        self.length = length

    def size_bytes(self) -> int:
        return sum(step.size_bytes() for step in self.memories)


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
