"""Decode state with interleaved memory tokens and prepended embeddings."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from flagformer.flow.decode_state import DecodeState, check_truncation
from flagformer.flow.interleave import InsertionPattern, Interleaving, interleave_unpadded
from flagformer.flow.layout import Layout
from flagformer.flow.state_record import Marks, StateMark, StateRecord, read_rows, take_rows

OWN = "tokens "  # how its names start in a record, which also holds those of `inner`


class InterleavedDecodeState:
    """Result of `init_state` for a model with memory tokens or prepended embeddings.

    It counts tokens; `inner` counts the cache positions of tokens, memory tokens and prepended embeddings.
    All rows end at the same cache position of `inner`. When only some rows begin a new block of memory
    tokens, the rows are shifted so that each stays contiguous.

    Attributes:
        inner: the state of the layers.
        pattern: where memory tokens are inserted.
        capacity: maximum number of tokens.
        num_prepended_capacity: maximum number of prepended embeddings.
        row_starts: [B] long, the index of each row's first valid token; None without left padding.
        length: number of tokens stored.
        prepended: number of embeddings prepended to the first block.
        prefix: [B] or [1] long, the number of first tokens of each row to which all tokens attend; None
            without a prefix.
    """

    def __init__(
        self,
        inner: DecodeState,
        pattern: InsertionPattern,
        capacity: int,
        num_prepended_capacity: int = 0,
        row_starts: Tensor | None = None,
    ) -> None:
        self.inner, self.pattern, self.row_starts = inner, pattern, row_starts
        self.capacity, self.num_prepended_capacity = capacity, num_prepended_capacity
        self.length = self.prepended = 0
        self.prefix: Tensor | None = None
        self.inner.pattern = pattern
        # per row: its first cache position in `inner`, valid prepended embeddings, skipped padding tokens
        self._row_offsets = [0] * self.batch
        self._num_valid = [0] * self.batch
        self._num_skipped: list[int] = self._row_offsets if row_starts is None else row_starts.tolist()
        # [B, P] long, the prepended embeddings of each row, valid ones first; None: in order
        self._order: Tensor | None = None
        self._marks = Marks()

    @property
    def batch(self) -> int:
        return self.inner.batch

    @property
    def window(self) -> int | None:
        return self.inner.window

    @property
    def num_entries(self) -> int:
        """Number of prepended embeddings and tokens."""
        return self.prepended + self.length

    @property
    def signature(self) -> tuple[tuple[str | int, ...], ...]:
        return self.inner.signature

    def layout(self, start: int, length: int, device: torch.device) -> Layout:
        """Layout of the tokens start ... start + length, without memory tokens and prepended embeddings."""
        if self.row_starts is None:
            return Layout.arange(length, device, start)
        return Layout.left_padded(self.row_starts, length, start)

    def begin_block(
        self, count: int, prepended: int, prepend_mask: Tensor | None, device: torch.device
    ) -> Interleaving:
        """Prepare `inner` for the next `count` tokens. In the first block `prepended` embeddings precede
        them, valid where `prepend_mask` [B, P] is True. Run the layers, then call `advance`."""
        if not self.num_entries:
            self._read_prepended(prepended, prepend_mask)
        self.inner.write_mask = None
        if self._is_uniform(prepended):
            interleaving = interleave_unpadded(
                self.pattern, self.num_entries, prepended + count, self._num_valid[0], device
            )
            self.inner.length = interleaving.layout.start
            return interleaving
        return self._begin_padded_block(count, prepended, prepend_mask, device)

    def advance(self, count: int, prepended: int, prefix: Tensor | None) -> None:
        """Count a block of `count` tokens and its prepended embeddings, after the layers have run."""
        self.length, self.prepended = self.length + count, self.prepended + prepended
        self.inner.write_mask = None
        if prefix is not None:
            self.prefix = prefix

    def entry_index(self, end: int, prepended: int, device: torch.device) -> Tensor:
        """[B, end] long, the entry at each cache position of `inner`, with the next block; -1: none."""
        in_row = torch.arange(end, device=device) - _column(self._row_offsets, device)
        return torch.where(in_row < 0, -1, self._entries(in_row, prepended))

    def reorder(self, index: Tensor) -> None:
        """Replace row i by row index[i] (beam search); index [B] long."""
        self.inner.reorder(index)
        self._take_rows(index)
        self._marks.reorder(index, self.batch)

    def select(self, rows: Tensor | Sequence[int]) -> InterleavedDecodeState:
        """A state of its own of some rows, which may repeat; see `DecodeState.select`."""
        index, other = read_rows(rows, self.batch, self.inner.device), copy.copy(self)
        other._take_rows(index)
        other.inner, other._marks = self.inner.select(index), Marks()
        return other

    def _take_rows(self, index: Tensor) -> None:
        """Replace all that it holds of rows by the rows `index`."""
        if self.prefix is not None:
            self.prefix = take_rows(self.prefix, index, self.batch)
        if self.row_starts is not None:
            self.row_starts = take_rows(self.row_starts, index, self.batch)
        if self._order is not None:
            self._order = take_rows(self._order, index, self.batch)
        rows = index.tolist() if not self._is_uniform() or len(index) != self.batch else range(self.batch)
        self._num_skipped, self._num_valid, self._row_offsets = (
            [numbers[row] for row in rows]
            for numbers in (self._num_skipped, self._num_valid, self._row_offsets)
        )

    def mark(self) -> StateMark:
        """A point to return to by `rollback`; see `DecodeState.mark`."""
        return self._marks.add(StateMark(self.length, self.record(changing=True)))

    def rollback(self, mark: StateMark) -> None:
        """Remove all tokens and prepended embeddings read since `mark`; see `DecodeState.rollback`."""
        self._marks.check(mark)
        self.restore(mark.record)
        self._marks.drop_after(mark.length)

    def record(self, changing: bool = False) -> StateRecord:
        """All that it holds; see `DecodeState.record`."""
        record = self.inner.record(changing)
        rows = {
            "row_offsets": self._row_offsets,
            "num_valid": self._num_valid,
            "num_skipped": self._num_skipped,
        }
        record.add(OWN, {name: torch.tensor(numbers) for name, numbers in rows.items()}, {})
        tensors = {"row_starts": self.row_starts, "prefix": self.prefix, "order": self._order}
        record.add(OWN, tensors, {"length": self.length, "prepended": self.prepended})
        return record

    def restore(self, record: StateRecord) -> None:
        """Set all that a record holds; the inverse of `record`."""
        own = record.part(OWN)
        tensors, numbers = own.tensors, own.numbers
        offsets = tensors["row_offsets"].tolist()
        if self.num_entries and numbers["length"] + numbers["prepended"]:
            self._shift_rows(offsets, record.numbers["length"], self.inner.device)
        self.inner.restore(record)
        self._row_offsets = offsets
        self._num_valid, self._num_skipped = tensors["num_valid"].tolist(), tensors["num_skipped"].tolist()
        self.length, self.prepended = numbers["length"], numbers["prepended"]
        self.row_starts, self.prefix, self._order = map(tensors.get, ("row_starts", "prefix", "order"))

    def truncate(self, length: int) -> None:
        """Remove all tokens from `length` on (rejected speculative tokens); prepended embeddings stay."""
        check_truncation(length, self.length, self.prefix, self.row_starts)
        row_lengths = self._row_lengths(length)
        end = max(row_lengths)
        self.inner.truncate_rows([end - one for one in row_lengths], end)
        if self.inner.row_starts is not None:
            self._shift_rows([end - one for one in row_lengths], end, self.inner.row_starts.device)
        self.inner.length, self.length = end, length
        self._marks.drop_after(length)

    def size_bytes(self) -> int:
        return self.inner.size_bytes()

    def _read_prepended(self, prepended: int, prepend_mask: Tensor | None) -> None:
        self._num_valid, self._order, self.inner.prepended = [prepended] * self.batch, None, prepended
        if prepend_mask is not None:
            self._num_valid = prepend_mask.sum(dim=1).tolist()
            self._order = (~prepend_mask).long().argsort(dim=1, stable=True)
            self.inner.prepended = prepend_mask.sum(dim=1, keepdim=True)

    def _is_uniform(self, prepended: int = 0) -> bool:
        """Whether no row skips an entry."""
        return not any(self._num_skipped) and min(self._num_valid) == self.prepended + prepended

    def _row_lengths(self, tokens: int) -> list[int]:
        """The number of cache positions of each row."""
        counts = [valid + max(tokens - skip, 0) for valid, skip in zip(self._num_valid, self._num_skipped)]
        return [self.pattern.length_with_memory(count) for count in counts]

    def _begin_padded_block(
        self, count: int, prepended: int, prepend_mask: Tensor | None, device: torch.device
    ) -> Interleaving:
        stored = self._row_lengths(self.length) if self.num_entries else [0] * self.batch
        row_lengths = self._row_lengths(self.length + count)
        new = [after - before for before, after in zip(stored, row_lengths)]
        end, length = max(1, *row_lengths), max(1, *new)  # at least one position, padding in every row or not
        self._shift_rows([end - one for one in row_lengths], end, device)
        self.inner.length = end - length
        layout = self.inner.layout(end - length, length, device)
        all_started = max(self._num_skipped) <= self.length and not prepended
        if all_started and set(new) == {count}:
            return Interleaving(layout, torch.arange(count, device=device)[None])
        row_offsets = _column(self._row_offsets, device)
        in_row = layout.cache_positions() - row_offsets  # [B, L]
        is_new = in_row >= _column(stored, device)
        if self.num_entries and set(new) != {length}:
            # padding is written too, so that no cache position is uninitialised
            self.inner.write_mask = is_new | (in_row < 0)
        entries = self._entries(in_row, prepended) - self.num_entries
        entry_index = torch.where(is_new & (entries >= 0), entries, -1)
        _, offset = self.pattern.locate(in_row)
        memory = torch.where(is_new & (entry_index < 0), offset, 0)
        source_index = torch.where(entry_index < 0, memory, entry_index + self.pattern.memory)
        in_row_entries = self._in_row_entries(count, prepended, prepend_mask, device)
        positions = row_offsets + self.pattern.cache_position(in_row_entries) - layout.start
        return Interleaving(layout, entry_index, source_index, positions.clamp(0, length - 1))

    def _entries(self, in_row: Tensor, prepended: int) -> Tensor:
        """The entry at positions of a row; -1 for memory tokens."""
        number, offset = self.pattern.locate(in_row)
        num_valid = _column(self._num_valid, in_row.device)
        embeds = number
        if self._order is not None:
            embeds = self._order.gather(1, number.clamp(0, self._order.shape[1] - 1))
        tokens = number - num_valid + prepended + self.prepended + _column(self._num_skipped, in_row.device)
        entries = torch.where(number < num_valid, embeds, tokens)
        return torch.where(offset < self.pattern.memory, -1, entries)

    def _in_row_entries(
        self, count: int, prepended: int, prepend_mask: Tensor | None, device: torch.device
    ) -> Tensor:
        """[B, P + T], the index of each new entry in its row; arbitrary for a skipped one."""
        tokens = torch.arange(self.length, self.length + count, device=device)
        tokens = tokens - _column(self._num_skipped, device) + _column(self._num_valid, device)
        if prepend_mask is None:
            embeds = torch.arange(prepended, device=device).expand(self.batch, -1)
        else:
            embeds = prepend_mask.cumsum(dim=1) - 1
        return torch.cat([embeds, tokens], dim=1).clamp(min=0)

    def _shift_rows(self, row_offsets: list[int], end: int, device: torch.device) -> None:
        """Move the rows of the caches so that they start at `row_offsets`."""
        if row_offsets == self._row_offsets and self.inner.row_starts is not None:
            return
        row_starts = torch.tensor(row_offsets, device=device)
        if self.num_entries and row_offsets != self._row_offsets:
            shift = row_starts - torch.tensor(self._row_offsets, device=device)
            source = torch.arange(end, device=device) - shift[:, None]
            self.inner.gather_positions(source.clamp(-1, self.inner.capacity - 1))
        self._row_offsets, self.inner.row_starts = row_offsets, row_starts


def _column(numbers: list[int], device: torch.device) -> Tensor:
    """[B, 1] long."""
    return torch.tensor(numbers, device=device)[:, None]
