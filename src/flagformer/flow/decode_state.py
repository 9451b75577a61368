"""Decode state: preallocated caches, written in place, without gradient."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flagformer.flow.attention_caches import KVCache
from flagformer.flow.interleave import InsertionPattern
from flagformer.flow.layer_cache import LayerCache
from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import narrowest
from flagformer.flow.state_record import (
    Marks,
    StateMark,
    StateRecord,
    check_rows,
    read_rows,
    take_rows,
)

# The kinds of caches, as the attributes of a state are called.
KINDS = ("attention", "input_mixer", "core", "mixer", "score_bias")


class TruncatedCache(LayerCache):
    """A cache without positions, from which tokens are removed by its own method."""

    @abstractmethod
    def truncate(self, row_lengths: Tensor) -> None:
        """Keep the first `row_lengths` [B] valid tokens of each row; ValueError where it cannot."""


class DecodeState:
    """The state of incremental decoding, made by `model.init_state(batch, length)`.

    All that it holds of rows and tokens is in `row_starts`, `prefix`, `prepended`, `context_layout` and the
    caches, which declare their tensors: `reorder`, `select`, `mark` and files need nothing else of them.

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
        score_bias_caches: numbers of tokens that biases of scores are made of, by execution step.
        context_layout: layout of the context, after the first forward with a context.
        pattern: where memory tokens are inserted; None for no memory tokens.
        prepended: number of prepended embeddings after the first memory tokens, one number or [B, 1].
        has_condition: whether the stored tokens were read with a condition.
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
        self.score_bias_caches: dict[int, KVCache] = {}
        self.context_layout: Layout | None = None
        self.pattern: InsertionPattern | None = None
        self.prepended: Tensor | int = 0
        self.write_mask: Tensor | None = None
        self._marks = Marks()
        self.has_condition = False

    @property
    def layer_caches(self) -> tuple[LayerCache, ...]:
        """All caches."""
        return tuple(cache for _, cache in self._named_caches())

    def _named_caches(self) -> Iterator[tuple[str, LayerCache]]:
        """The caches by kind and execution step, as their names in a record start."""
        for kind in KINDS:
            for step, cache in getattr(self, f"{kind}_caches").items():
                yield f"{kind} {step} ", cache

    @property
    def device(self) -> torch.device:
        """The device of the caches."""
        tensors = (tensor for cache in self.layer_caches for tensor in cache.tensors.values())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

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
        width = window if self.window is None else narrowest(self.window, window)
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
        for cache in self.layer_caches:
            cache.reorder(index)
        self._take_rows(index)
        self._marks.reorder(index, self.batch)

    def select(self, rows: Tensor | Sequence[int]) -> DecodeState:
        """A state of its own of some rows, which may repeat (several continuations of one prompt).

        Args:
            rows: row numbers, long [N] or a list; the result has N rows.
        """
        index, other = read_rows(rows, self.batch, self.device), copy.copy(self)
        other._marks = Marks()
        for kind in KINDS:
            caches = getattr(self, f"{kind}_caches").items()
            setattr(other, f"{kind}_caches", {step: cache.select(index) for step, cache in caches})
        other._take_rows(index)
        other.batch = len(index)
        return other

    def _take_rows(self, index: Tensor) -> None:
        """Replace the tensors outside the caches by their rows `index`."""
        if self.prefix is not None:
            self.prefix = take_rows(self.prefix, index, self.batch)
        if isinstance(self.prepended, Tensor):
            self.prepended = take_rows(self.prepended, index, self.batch)
        if self.row_starts is not None:
            self.row_starts = take_rows(self.row_starts, index, self.batch)
        if self.context_layout is not None and self.context_layout.valid is not None:
            valid = take_rows(self.context_layout.valid, index, self.batch)
            self.context_layout = replace(self.context_layout, valid=valid)

    def mark(self) -> StateMark:
        """A point to return to by `rollback`, before tokens that may be rejected.

        It copies what has no positions, such as the state of a mixer; cached keys and values stay in place.
        """
        return self._marks.add(StateMark(self.length, self.record(changing=True)))

    def rollback(self, mark: StateMark) -> None:
        """Remove all tokens read since `mark`: the state is as if it had never read them.

        Raises:
            ValueError: for a mark of another state, or one whose tokens were truncated since.
        """
        self._marks.check(mark)
        self.restore(mark.record)
        self._marks.drop_after(mark.length)

    def record(self, changing: bool = False) -> StateRecord:
        """All that it holds, tensors with positions up to `length`; views.

        Args:
            changing: only what later tokens change, in copies.
        """
        numbers = {"length": self.length, "has_condition": int(self.has_condition)}
        record = StateRecord({}, numbers)
        context = self.context_layout
        record.add("", {"row_starts": self.row_starts, "prefix": self.prefix}, {})
        if isinstance(self.prepended, Tensor):
            record.add("", {"prepended": self.prepended}, {})
        else:
            record.add("", {}, {"prepended": self.prepended})
        if context is not None:
            record.add("context ", {"positions": context.positions, "valid": context.valid}, {})
        for name, cache in self._named_caches():
            tensors = cache.changing() if changing else cache.stored(self.length)
            record.add(name, tensors, {counter: getattr(cache, counter) for counter in cache.counters})
        return record

    def declared(self, length: int) -> dict[str, Tensor]:
        """The tensors of its caches for `length` tokens, by their names in a record; without a context."""
        return {
            name + tensor: one
            for name, cache in self._named_caches()
            for tensor, one in cache.stored(length).items()
        }

    def restore(self, record: StateRecord) -> None:
        """Set all that a record holds; the inverse of `record`."""
        tensors, numbers = record.tensors, record.numbers
        self.length = numbers["length"]
        self.has_condition = bool(numbers.get("has_condition"))
        self.row_starts, self.prefix = tensors.get("row_starts"), tensors.get("prefix")
        self.prepended = tensors["prepended"] if "prepended" in tensors else numbers["prepended"]
        context = record.part("context ").tensors
        self.context_layout = Layout(context["positions"], context.get("valid")) if context else None
        for name, cache in self._named_caches():
            part = record.part(name)
            cache.restore(part.tensors, self.length)
            for counter, number in part.numbers.items():
                setattr(cache, counter, number)

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
        self._marks.drop_after(length)

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
