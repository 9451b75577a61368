"""Interleave memory tokens with the entries of a row, and separate them again.

The *entries* of a row are its prepended embeddings followed by its tokens, [B, N]. Interleaved with memory
tokens a row has L positions. Valid rows are contiguous and end at the last position: padding in front of the
first valid entry is skipped. Position encodings and masks then use these positions, as without memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow.layout import Layout

Count = TypeVar("Count", int, Tensor)
NEVER = 2**40  # a block longer than any row


@dataclass(frozen=True)
class InsertionPattern:
    """`memory` memory tokens before every block of `every` entries of a row."""

    memory: int = 0
    every: int = NEVER

    def length_with_memory(self, count: Count) -> Count:
        """The number of positions of `count` entries with their memory tokens."""
        # a sum, which an exported program can bound
        if self.every == NEVER and not isinstance(count, Tensor):
            return count + self.memory if count else count
        return count + self.memory * -(-count // self.every)

    def cache_position(self, entry: Count) -> Count:
        """The position of an entry of a row; both count from 0."""
        return entry + self.memory * (entry // self.every + 1)

    def locate(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entry at each position of a row (for a memory token: the next entry), and the offset of
        the position in its block (below `memory` for memory tokens)."""
        block, offset = positions // (self.every + self.memory), positions % (self.every + self.memory)
        return block * self.every + (offset - self.memory).clamp(min=0), offset

    def always_visible(self, positions: Tensor, prepended: Tensor | int) -> Tensor:
        """Bool, True for memory tokens and the row's first `prepended` entries."""
        entry, offset = self.locate(positions)
        return (offset < self.memory) | (entry < prepended)


@dataclass(frozen=True)
class Interleaving:
    """One block of entries and its memory tokens.

    Attributes:
        layout: layout of the L positions.
        entry_index: [1 or B, L] long, the entry at each position; -1 for none.
        source_index: [1 or B, L] long, index into the memory tokens followed by the entries; None:
            `num_leading` memory tokens, then the entries in order.
        cache_positions: [1 or B, N] long, the position of each entry, arbitrary for a skipped one; None: the
            last N.
        num_leading: number of memory tokens in front if `source_index` is None.
    """

    layout: Layout
    entry_index: Tensor
    source_index: Tensor | None = None
    cache_positions: Tensor | None = None
    num_leading: int = 0

    def merge(self, memory: Tensor, entries: Tensor) -> Tensor:
        """[M, D] and [B, N, D] -> [B, L, D]."""
        if self.source_index is None and not self.num_leading:
            return entries
        both = torch.cat([memory.expand(entries.shape[0], -1, -1), entries], dim=1)
        return both if self.source_index is None else _take(both, self.source_index)

    def unmerge(self, merged: Tensor) -> Tensor:
        """[B, L, D] -> [B, N, D]."""
        if self.cache_positions is None:
            # contiguous: a product of a slice would be exported for some numbers of rows only
            return merged[:, self.num_leading :].contiguous()
        return _take(merged, self.cache_positions)

    def mask(self, attn_mask: Tensor, kv_entry_index: Tensor) -> Tensor:
        """Extend a mask of entries to one of positions. Memory tokens attend to all and all to them.

        Args:
            attn_mask: [1 or B, 1 or H, N, S] bool.
            kv_entry_index: [1 or B, number of keys] long, the entry at each key; -1 for none.
        """
        padded = F.pad(attn_mask, (1, 0, 1, 0), value=True).transpose(1, 2)  # [1 or B, N + 1, 1 or H, S + 1]
        rows = torch.arange(attn_mask.shape[0], device=attn_mask.device)[:, None, None]
        q_idx, kv_idx = self.entry_index[:, :, None] + 1, kv_entry_index[:, None] + 1
        return padded[rows, q_idx, :, kv_idx].permute(0, 3, 1, 2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """[B, S, D] by [1 or B, L] -> [B, L, D]."""
    if index.shape[0] == 1:
        return x.index_select(1, index[0])
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def interleave_unpadded(
    pattern: InsertionPattern, stored: int, count: int, prepended: int, device: torch.device
) -> Interleaving:
    """Rows without padding, all of one form: `count` entries after `stored` ones."""
    start, end = pattern.length_with_memory(stored), pattern.length_with_memory(stored + count)
    entry, offset = pattern.locate(torch.arange(start, end, device=device)[None])
    is_memory = offset < pattern.memory
    entry_index = torch.where(is_memory, -1, entry - stored)
    layout = Layout.arange(end - start, device, start)
    layout = replace(layout, always_visible=is_memory | (entry < prepended))
    if not pattern.memory or (stored and end - start == count):
        return Interleaving(layout, entry_index)
    # a compiled graph of any length must not depend on the number of blocks
    known = pattern.every == NEVER or not torch.compiler.is_compiling()
    if known and stored % pattern.every == 0 and count <= pattern.every:
        return Interleaving(layout, entry_index, num_leading=pattern.memory)
    source_index = torch.where(is_memory, offset, entry_index + pattern.memory)
    entries = torch.arange(stored, stored + count, device=device)[None]
    return Interleaving(layout, entry_index, source_index, pattern.cache_position(entries) - start)


def interleave_padded(pattern: InsertionPattern, valid: Tensor, prepended: int) -> Interleaving:
    """Rows with padding; `valid` [B, N] bool, the first `prepended` of it for prepended embeddings.

    Padding in front of the first valid token and invalid prepended embeddings are skipped; padding after the
    first valid token keeps its positions.
    """
    front, tokens = valid[:, :prepended], valid[:, prepended:]
    counted = torch.cat([front, tokens.cumsum(dim=1) > 0], dim=1)
    entries = counted.cumsum(dim=1) - 1  # index of each entry in its row
    length = pattern.length_with_memory(valid.shape[1])
    row_starts = length - pattern.length_with_memory(counted.sum(dim=1, keepdim=True))
    positions = torch.where(counted, row_starts + pattern.cache_position(entries), -1)
    entry_index = _entry_index(positions, length)
    in_row = torch.arange(length, device=valid.device) - row_starts  # [B, L], negative before the row
    entry, offset = pattern.locate(in_row)
    last = torch.where(valid, entries, -1).amax(dim=1, keepdim=True)
    # memory tokens of a block are valid if this block or a later one has a valid entry
    block_start = entry - (offset - pattern.memory).clamp(min=0)
    valid_memory = (in_row >= 0) & (block_start <= last)
    merged_valid = torch.where(entry_index < 0, valid_memory, valid.gather(1, entry_index.clamp(min=0)))
    layout = Layout(in_row.clamp(min=0), merged_valid, always_visible=entry_index < prepended)
    source_index = _source_index(pattern, entry_index, offset, in_row)
    return Interleaving(layout, entry_index, source_index, positions.clamp(min=0))


def interleave_packed(pattern: InsertionPattern, tokens: Layout) -> Interleaving:
    """Rows of several packed sequences, each with its own memory tokens."""
    entries, segment_ids, valid = tokens.positions, tokens.segment_ids, tokens.valid
    assert segment_ids is not None
    assert valid is not None
    count, num_segments = tokens.length, tokens.num_segments
    counts = entries.new_zeros(segment_ids.shape[0], num_segments + 1)
    counts = counts.scatter_add(1, segment_ids, torch.ones_like(segment_ids))
    # the padding after the last sequence has no memory tokens
    sizes = torch.cat([pattern.length_with_memory(counts[:, :-1]), counts[:, -1:]], dim=1)
    ends = sizes.cumsum(dim=1)
    num_blocks = min(count, (count + (pattern.every - 1) * num_segments) // pattern.every)
    length = count + pattern.memory * num_blocks
    row_starts, segment_starts = length - ends[:, -1:], ends - sizes
    in_segment = torch.where(valid, pattern.cache_position(entries), entries)
    positions = row_starts + segment_starts.gather(1, segment_ids) + in_segment
    entry_index = _entry_index(positions, length)
    in_row = torch.arange(length, device=valid.device) - row_starts
    merged_ids = torch.searchsorted(ends, in_row.contiguous(), right=True).clamp(max=num_segments)
    merged_positions = in_row - segment_starts.gather(1, merged_ids)
    _, offset = pattern.locate(merged_positions)
    layout = Layout(
        merged_positions.clamp(min=0),
        torch.where(entry_index < 0, in_row >= 0, valid.gather(1, entry_index.clamp(min=0))),
        merged_ids,
        num_segments=num_segments,
        always_visible=entry_index < 0,
    )
    return Interleaving(layout, entry_index, _source_index(pattern, entry_index, offset, in_row), positions)


def _entry_index(positions: Tensor, length: int) -> Tensor:
    """[B, L] long, the entry at each position; -1 for none."""
    batch, count = positions.shape
    entry_index = positions.new_full((batch, length + 1), -1)
    entries = torch.arange(count, device=positions.device).expand(batch, -1)
    entry_index = entry_index.scatter(1, torch.where(positions < 0, length, positions), entries)
    return entry_index[:, :length]


def _source_index(pattern: InsertionPattern, entry_index: Tensor, offset: Tensor, in_row: Tensor) -> Tensor:
    """[B, L] long, index into memory tokens followed by entries; arbitrary before the start of a row."""
    memory = torch.where(in_row < 0, 0, offset)
    return torch.where(entry_index < 0, memory, entry_index + pattern.memory)
