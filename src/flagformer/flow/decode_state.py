"""One decoding session: preallocated, written in place, without gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from flagformer.flow.key_values import KeyValues
from flagformer.flow.layout import Layout


class SessionState(Protocol):
    """What one component remembers between blocks of tokens."""

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was (beam search)."""

    def size_bytes(self) -> int:
        """Memory held."""


class KVCache:
    """Keys and values of one self-attention step: [B, G, capacity, K], filled from the left."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def extend(self, k: Tensor, v: Tensor, start: int, first: int) -> KeyValues:
        """Writes T new entries at `start`; returns the entries from `first` on."""
        end = start + k.shape[2]
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        return KeyValues(self.k[:, :, first:end], self.v[:, :, first:end])

    def reorder(self, index: Tensor) -> None:
        self.k.copy_(self.k.index_select(0, index))
        self.v.copy_(self.v.index_select(0, index))

    def size_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


class FeatureCache:
    """What tokens were at the entry of one step: [B, room + capacity, D], with `room` zeros in front.

    All of them are kept, so that `truncate` needs no care.
    """

    def __init__(self, x: Tensor, room: int) -> None:
        self.x, self.room = x, room

    def extend(self, x: Tensor, start: int) -> None:
        """Writes T new tokens at `start`."""
        first = self.room + start
        self.x[:, first : first + x.shape[1]] = x

    def before(self, steps: int, dims: slice, layout: Layout) -> Tensor:
        """These dimensions of the tokens that stand so many places before those of the layout."""
        first = self.room + layout.start - steps
        return self.x[:, first : first + layout.length, dims]

    def reorder(self, index: Tensor) -> None:
        self.x.copy_(self.x.index_select(0, index))

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

    def size_bytes(self) -> int:
        return 0 if self.entries is None else self.entries.k.nbytes + self.entries.v.nbytes


@dataclass
class DecodeState:
    """The memory of a decoding session, built by `model.init_state(batch, length)`.

    Attributes:
        batch: rows.
        capacity: how many tokens fit.
        length: how many tokens it holds.
        window: every query sees at most this many of the last tokens; None: all.
        first: [B] long, the place of each row's first real token; None without left padding.
        bias_row: [H, capacity], the position biases of the distances capacity - 1 ... 0; None for no bias.
        made_for: kind, key/value heads and their width at each execution step of the stack that made it.
        prefix: [B] or [1] long, how many first tokens of each row all tokens see; None without a prefix.
        steps: what attention remembers, by execution step (tied modules run at several).
        entries: what the entries of sublayers remember, likewise.
        cores: what cores remember beside keys and values, likewise.
        context_layout: standing of the context's tokens, once a forward has brought one.
    """

    batch: int
    capacity: int
    window: int | None = None
    first: Tensor | None = None
    length: int = 0
    prefix: Tensor | None = None
    bias_row: Tensor | None = None
    made_for: tuple[tuple[str, int, int], ...] = ()
    steps: dict[int, SessionState] = field(default_factory=dict)
    entries: dict[int, SessionState] = field(default_factory=dict)
    cores: dict[int, SessionState] = field(default_factory=dict)
    context_layout: Layout | None = None

    @property
    def memories(self) -> tuple[SessionState, ...]:
        """All that is remembered."""
        return (*self.steps.values(), *self.entries.values(), *self.cores.values())

    def layout(self, start: int, length: int, device: torch.device) -> Layout:
        """The standing of tokens start ... start + length."""
        if self.first is None:
            return Layout.plain(length, device, start)
        return Layout.left_padded(self.first, length, start)

    def newest_bias(self, keys: int) -> Tensor | None:
        """[1, H, 1, S], the bias of the newest token against the last S; None for no bias."""
        return None if self.bias_row is None else self.bias_row[None, :, None, self.capacity - keys :]

    def oldest(self) -> int:
        """The first place that the next query still sees."""
        return 0 if self.window is None else max(0, self.length + 1 - self.window)

    def read_prefix(self, prefix: Tensor, block: int) -> None:
        """Remembers the prefix that the first block of tokens brings, whole."""
        if self.length:
            raise ValueError(
                "`prefix_attn_len` belongs to the first block of a decoding session, but `state` holds "
                f"{self.length} tokens already: leave it out, the state remembers it"
            )
        ends = prefix if self.first is None else prefix + self.first
        if not torch.compiler.is_compiling() and (longest := int(ends.max())) > block:
            raise ValueError(
                f"`prefix_attn_len` reaches to token {longest}, but the first block has {block}: give the "
                "whole prefix at once, as its tokens see each other"
            )
        self.prefix = prefix

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was (beam search); index [B] long."""
        if index.dtype not in (torch.int64, torch.int32) or tuple(index.shape) != (self.batch,):
            text = f"{self.batch} row numbers, but is {index.dtype} of shape {list(index.shape)}"
            raise ValueError(f"`index` must be {text}")
        if index.device.type == "cpu" and not bool(((index >= 0) & (index < self.batch)).all()):
            raise ValueError(f"`index` must hold rows from 0 to {self.batch - 1}, but is {index.tolist()}")
        if self.prefix is not None and len(self.prefix) > 1:
            self.prefix = self.prefix.index_select(0, index)
        for step in self.memories:
            step.reorder(index)
        if self.first is not None:
            self.first = self.first.index_select(0, index)
        if self.context_layout is not None and self.context_layout.padding is not None:
            padding = self.context_layout.padding.index_select(0, index)
            self.context_layout = Layout(self.context_layout.positions, padding)

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on (a rejected speculation)."""
        if length < 0 or length > self.length:
            raise ValueError(f"`length` must be between 0 and the state's {self.length}, but is {length}")
        if self.prefix is not None:
            end = int((self.prefix if self.first is None else self.prefix + self.first).max())
            if length < end:
                raise ValueError(f"`length` must keep the prefix, {end} tokens, but is {length}")
        self.length = length

    def size_bytes(self) -> int:
        return sum(step.size_bytes() for step in self.memories)
