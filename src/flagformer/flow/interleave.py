"""Memory tokens and prepended embeddings between the tokens of a row: who stands where, and the way back.

A *stream* is what came in: prepended embeddings, then tokens, [B, N]. Woven with memory it has L places, and
every row is contiguous: what hides in front of a row's first real entry is left out, and the row ends at the
last place. Everything positional then follows from places, as it does without memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow.layout import Layout

Count = TypeVar("Count", int, Tensor)
NEVER = 2**40  # a block that no row fills


@dataclass(frozen=True)
class InsertionPattern:
    """`memory` memory tokens in front of every block of `every` entries of a row."""

    memory: int = 0
    every: int = NEVER

    def length_with_memory(self, count: Count) -> Count:
        """How many places so many entries take."""
        return count + self.memory * -(-count // self.every)

    def cache_position(self, number: Count) -> Count:
        """Where a row's entry of this number stands, from 0 on."""
        return number + self.memory * (number // self.every + 1)

    def locate(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the entry at each place of a row, or of the next one where memory stands; and how
        far the place is within its block (memory below `memory`)."""
        block, inside = places // (self.every + self.memory), places % (self.every + self.memory)
        return block * self.every + (inside - self.memory).clamp(min=0), inside

    def always_visible(self, places: Tensor, prepended: Tensor | int) -> Tensor:
        """Bool, True where memory or one of the row's first `prepended` entries stands."""
        number, inside = self.locate(places)
        return (inside < self.memory) | (number < prepended)


@dataclass(frozen=True)
class Interleaving:
    """One block of a stream and its memory.

    Attributes:
        layout: the standing of the L places.
        columns: [1 or B, L] long, the entry of the stream at each place; -1 for none.
        index: [1 or B, L] long, into the memory tokens and the stream behind them; None: `front` memory
            tokens, then the stream as it is.
        places: [1 or B, N] long, the place of each entry of the stream, any for one that is left out; None:
            the last N.
        front: how many memory tokens stand in front where there is no index.
    """

    layout: Layout
    entry_index: Tensor
    source_index: Tensor | None = None
    cache_positions: Tensor | None = None
    num_leading: int = 0

    def merge(self, memory: Tensor, stream: Tensor) -> Tensor:
        """[M, D] and [B, N, D] -> [B, L, D]."""
        if self.source_index is None and not self.num_leading:
            return stream
        both = torch.cat([memory.expand(stream.shape[0], -1, -1), stream], dim=1)
        return both if self.source_index is None else _take(both, self.source_index)

    def unmerge(self, woven: Tensor) -> Tensor:
        """[B, L, D] -> [B, N, D]."""
        return (
            woven[:, self.num_leading :]
            if self.cache_positions is None
            else _take(woven, self.cache_positions)
        )

    def mask(self, given: Tensor, keys: Tensor) -> Tensor:
        """A mask of the stream's entries -> one of places: memory sees all and is seen by all.

        Args:
            given: [1 or B, 1 or H, N, S] bool.
            keys: [1 or B, places] long, the entry of the stream at each place of the keys; -1 for none.
        """
        wide = F.pad(given, (1, 0, 1, 0), value=True).transpose(1, 2)  # [1 or B, N + 1, 1 or H, S + 1]
        rows = torch.arange(given.shape[0], device=given.device)[:, None, None]
        queries, seen = self.entry_index[:, :, None] + 1, keys[:, None] + 1
        return wide[rows, queries, :, seen].permute(0, 3, 1, 2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """[B, S, D] by [1 or B, L] -> [B, L, D]."""
    if index.shape[0] == 1:
        return x.index_select(1, index[0])
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def interleave_unpadded(
    pattern: InsertionPattern, held: int, count: int, prepended: int, device: torch.device
) -> Interleaving:
    """Rows without padding, all alike: `count` entries behind `held` ones."""
    start, end = pattern.length_with_memory(held), pattern.length_with_memory(held + count)
    places = torch.arange(start, end, device=device)[None]
    number, inside = pattern.locate(places)
    memory = inside < pattern.memory
    columns = torch.where(memory, -1, number - held)
    layout = replace(Layout.arange(end - start, device, start), always_visible=memory | (number < prepended))
    if not pattern.memory or (held and end - start == count):
        return Interleaving(layout, columns)
    # a compiled graph of any length must not know whether there is one block
    known = pattern.every == NEVER or not torch.compiler.is_compiling()
    if known and held % pattern.every == 0 and count <= pattern.every:
        return Interleaving(layout, columns, num_leading=pattern.memory)
    index = torch.where(memory, inside, columns + pattern.memory)
    numbers = torch.arange(held, held + count, device=device)[None]
    return Interleaving(layout, columns, index, pattern.cache_position(numbers) - start)


def interleave_padded(pattern: InsertionPattern, real: Tensor, prepended: int) -> Interleaving:
    """Rows with padding; `real` [B, N] bool, of it `prepended` in front.

    Hidden tokens in front of the first real one, and hidden prepended embeddings, are left out; tokens that
    hide further behind keep their places.
    """
    front, tokens = real[:, :prepended], real[:, prepended:]
    counted = torch.cat([front, tokens.cumsum(dim=1) > 0], dim=1)
    numbers = counted.cumsum(dim=1) - 1
    length = pattern.length_with_memory(real.shape[1])
    first = length - pattern.length_with_memory(counted.sum(dim=1, keepdim=True))
    places = torch.where(counted, first + pattern.cache_position(numbers), -1)
    columns = _columns(places, length)
    own = torch.arange(length, device=real.device) - first  # [B, L], negative in front of the row
    number, inside = pattern.locate(own)
    last = torch.where(real, numbers, -1).amax(dim=1, keepdim=True)
    # the memory in front of a block is real where the block or one behind it holds a real entry
    begins = number - (inside - pattern.memory).clamp(min=0)
    padding = torch.where(columns < 0, (own >= 0) & (begins <= last), real.gather(1, columns.clamp(min=0)))
    layout = Layout(own.clamp(min=0), padding, always_visible=columns < prepended)
    return Interleaving(layout, columns, _index(pattern, columns, inside, own), places.clamp(min=0))


def interleave_packed(pattern: InsertionPattern, tokens: Layout) -> Interleaving:
    """Rows of several sequences: each has memory of its own."""
    numbers, segments, real = tokens.positions, tokens.segment_ids, tokens.valid
    assert segments is not None
    assert real is not None
    count, sequences = tokens.length, tokens.num_segments
    held = numbers.new_zeros(segments.shape[0], sequences + 1).scatter_add(
        1, segments, torch.ones_like(segments)
    )
    # what stands behind the last sequence has no memory
    sizes = torch.cat([pattern.length_with_memory(held[:, :-1]), held[:, -1:]], dim=1)
    ends = sizes.cumsum(dim=1)
    blocks = min(count, (count + (pattern.every - 1) * sequences) // pattern.every)
    length = count + pattern.memory * blocks
    first, origins = length - ends[:, -1:], ends - sizes
    inward = torch.where(real, pattern.cache_position(numbers), numbers)
    places = first + origins.gather(1, segments) + inward
    columns = _columns(places, length)
    content = torch.arange(length, device=real.device) - first
    woven = torch.searchsorted(ends, content.contiguous(), right=True).clamp(max=sequences)
    own = content - origins.gather(1, woven)
    _, inside = pattern.locate(own)
    padding = torch.where(columns < 0, content >= 0, real.gather(1, columns.clamp(min=0)))
    layout = Layout(own.clamp(min=0), padding, woven, num_segments=sequences, always_visible=columns < 0)
    return Interleaving(layout, columns, _index(pattern, columns, inside, content), places)


def _columns(places: Tensor, length: int) -> Tensor:
    """[B, L] long, which entry has each place; -1 for none."""
    batch, count = places.shape
    columns = places.new_full((batch, length + 1), -1)
    numbers = torch.arange(count, device=places.device).expand(batch, -1)
    columns = columns.scatter(1, torch.where(places < 0, length, places), numbers)
    return columns[:, :length]


def _index(pattern: InsertionPattern, columns: Tensor, inside: Tensor, own: Tensor) -> Tensor:
    """[B, L] long into memory and stream; what stands in front of a row is any."""
    memory = torch.where(own < 0, 0, inside)
    return torch.where(columns < 0, memory, columns + pattern.memory)
