"""A decoding session that counts tokens, around one that also holds memory and prepended embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flow.decode_state import DecodeState, check_kept, check_prefix
from flagformer.flow.interleave import InsertionPattern, Interleaving, interleave_unpadded
from flagformer.flow.layout import Layout


class InterleavedDecodeState:
    """What `init_state` gives where memory tokens or prepended embeddings stand between tokens.

    All rows end at one place of `inner`, whatever memory each of them holds: when some come to a new block of
    memory and others do not, rows move by as many places, so that each stays contiguous.

    Attributes:
        inner: the session of the layers; its places count memory and prepended embeddings.
        pattern: how memory stands among the others.
        capacity: how many tokens fit.
        room: how many prepended embeddings fit.
        starts: [B] long, the place of each row's first real token; None without left padding.
        length: how many tokens it holds.
        prepended: how many embeddings the first block has prepended.
        prefix: [B] or [1] long, how many first tokens of each row all tokens see; None without a prefix.
    """

    def __init__(
        self,
        inner: DecodeState,
        pattern: InsertionPattern,
        capacity: int,
        room: int = 0,
        starts: Tensor | None = None,
    ) -> None:
        self.inner, self.pattern, self.capacity, self.num_prepended_capacity, self.row_starts = (
            inner,
            pattern,
            capacity,
            room,
            starts,
        )
        self.length = self.prepended = 0
        self.prefix: Tensor | None = None
        self.inner.pattern = pattern
        # tokens and prepended embeddings of each row that are left out and real; where it begins in `inner`
        self._row_offsets = [0] * self.batch
        self._num_valid = [0] * self.batch
        self._num_skipped: list[int] = self._row_offsets if starts is None else starts.tolist()
        # [B, P] long, the prepended embeddings of each row, real ones first; None: in order
        self._order: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.inner.batch

    @property
    def window(self) -> int | None:
        return self.inner.window

    @property
    def num_entries(self) -> int:
        """Prepended embeddings and tokens."""
        return self.prepended + self.length

    @property
    def signature(self) -> tuple[tuple[str, int, int, int], ...]:
        return self.inner.signature

    def layout(self, start: int, length: int, device: torch.device) -> Layout:
        """The standing of tokens start ... start + length among tokens alone."""
        if self.row_starts is None:
            return Layout.arange(length, device, start)
        return Layout.left_padded(self.row_starts, length, start)

    def begin_block(
        self, count: int, prepended: int, padding: Tensor | None, device: torch.device
    ) -> Interleaving:
        """Makes ready for the next `count` tokens, behind `prepended` embeddings in the first block, of which
        `padding` [B, P] says which are real. The layers may then run; `leave` ends it."""
        if not self.num_entries:
            self._read_prepended(prepended, padding)
        self.inner.write_mask = None
        if self._is_uniform(prepended):
            weave = interleave_unpadded(
                self.pattern, self.num_entries, prepended + count, self._num_valid[0], device
            )
            self.inner.length = weave.layout.start
            return weave
        return self._enter_rows(count, prepended, padding, device)

    def end_block(self, count: int, prepended: int, prefix: Tensor | None) -> None:
        """The layers have taken in what `enter` made ready."""
        self.length, self.prepended = self.length + count, self.prepended + prepended
        self.inner.write_mask = None
        if prefix is not None:
            self.prefix = prefix

    def entry_index(self, end: int, prepended: int, device: torch.device) -> Tensor:
        """[B, end] long, which entry of the stream each place of `inner` holds or will; -1: none."""
        own = torch.arange(end, device=device) - _column(self._row_offsets, device)
        return torch.where(own < 0, -1, self._entries(own, prepended))

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was (beam search); index [B] long."""
        self.inner.reorder(index)
        if self.prefix is not None and len(self.prefix) > 1:
            self.prefix = self.prefix.index_select(0, index)
        if self.row_starts is not None:
            self.row_starts = self.row_starts.index_select(0, index)
        if self._order is not None:
            self._order = self._order.index_select(0, index)
        if not self._is_uniform():
            rows = index.tolist()
            self._num_skipped, self._num_valid, self._row_offsets = (
                [numbers[row] for row in rows]
                for numbers in (self._num_skipped, self._num_valid, self._row_offsets)
            )

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on (a rejected speculation); prepended embeddings stay."""
        check_kept(length, self.length, self.prefix, self.row_starts)
        contents = self._row_lengths(length)
        end = max(contents)
        if self.inner.row_starts is not None:
            self._move([end - content for content in contents], end, self.inner.row_starts.device)
        self.inner.length, self.length = end, length

    def size_bytes(self) -> int:
        return self.inner.size_bytes()

    def read_prefix(self, prefix: Tensor, block: int) -> None:
        """Checks the prefix that the first block of tokens brings, whole."""
        check_prefix(prefix, self.row_starts, self.length, block)

    def _read_prepended(self, prepended: int, padding: Tensor | None) -> None:
        self._num_valid, self._order, self.inner.prepended = [prepended] * self.batch, None, prepended
        if padding is not None:
            self._num_valid = padding.sum(dim=1).tolist()
            self._order = (~padding).long().argsort(dim=1, stable=True)
            self.inner.prepended = padding.sum(dim=1, keepdim=True)

    def _is_uniform(self, prepended: int = 0) -> bool:
        """Whether nothing is left out in any row."""
        return not any(self._num_skipped) and min(self._num_valid) == self.prepended + prepended

    def _row_lengths(self, tokens: int) -> list[int]:
        """How many places each row takes."""
        counts = [real + max(tokens - skip, 0) for real, skip in zip(self._num_valid, self._num_skipped)]
        return [self.pattern.length_with_memory(count) for count in counts]

    def _enter_rows(
        self, count: int, prepended: int, padding: Tensor | None, device: torch.device
    ) -> Interleaving:
        held = self._row_lengths(self.length) if self.num_entries else [0] * self.batch
        contents = self._row_lengths(self.length + count)
        new = [after - before for before, after in zip(held, contents)]
        end, length = max(1, *contents), max(1, *new)  # one place at least, be it a pad in every row
        self._move([end - content for content in contents], end, device)
        self.inner.length = end - length
        layout = self.inner.layout(end - length, length, device)
        begun = max(self._num_skipped) <= self.length and not prepended
        if begun and set(new) == {count}:
            return Interleaving(layout, torch.arange(count, device=device)[None])
        fronts = _column(self._row_offsets, device)
        own = layout.cache_positions() - fronts  # [B, L]
        fresh = own >= _column(held, device)
        if self.num_entries and set(new) != {length}:
            self.inner.write_mask = fresh | (
                own < 0
            )  # pads are written, so that no place is without a number
        entries = self._entries(own, prepended) - self.num_entries
        columns = torch.where(fresh & (entries >= 0), entries, -1)
        _, inside = self.pattern.locate(own)
        memory = torch.where(fresh & (columns < 0), inside, 0)
        index = torch.where(columns < 0, memory, columns + self.pattern.memory)
        numbers = self._numbers(count, prepended, padding, device)
        places = fronts + self.pattern.cache_position(numbers) - layout.start
        return Interleaving(layout, columns, index, places.clamp(0, length - 1))

    def _entries(self, own: Tensor, prepended: int) -> Tensor:
        """Which entry of the stream stands at places of the rows' own; -1 for memory."""
        number, inside = self.pattern.locate(own)
        real = _column(self._num_valid, own.device)
        front = number
        if self._order is not None:
            front = self._order.gather(1, number.clamp(0, self._order.shape[1] - 1))
        tokens = number - real + prepended + self.prepended + _column(self._num_skipped, own.device)
        entries = torch.where(number < real, front, tokens)
        return torch.where(inside < self.pattern.memory, -1, entries)

    def _numbers(self, count: int, prepended: int, padding: Tensor | None, device: torch.device) -> Tensor:
        """[B, P + T], the number of each coming entry within its row; any for one that is left out."""
        tokens = torch.arange(self.length, self.length + count, device=device)
        tokens = tokens - _column(self._num_skipped, device) + _column(self._num_valid, device)
        if padding is None:
            front = torch.arange(prepended, device=device).expand(self.batch, -1)
        else:
            front = padding.cumsum(dim=1) - 1
        return torch.cat([front, tokens], dim=1).clamp(min=0)

    def _move(self, fronts: list[int], end: int, device: torch.device) -> None:
        """Rows begin at these places from now on."""
        if fronts == self._row_offsets and self.inner.row_starts is not None:
            return
        first = torch.tensor(fronts, device=device)
        if self.num_entries and fronts != self._row_offsets:
            by = first - torch.tensor(self._row_offsets, device=device)
            source = torch.arange(end, device=device) - by[:, None]
            self.inner.gather_positions(source.clamp(-1, self.inner.capacity - 1))
        self._row_offsets, self.inner.row_starts = fronts, first


def _column(numbers: list[int], device: torch.device) -> Tensor:
    """[B, 1] long."""
    return torch.tensor(numbers, device=device)[:, None]
