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
ENDLESS = 2**40  # a block that no row fills


@dataclass(frozen=True)
class Pattern:
    """`memory` memory tokens in front of every block of `every` entries of a row."""

    memory: int = 0
    every: int = ENDLESS

    def woven(self, count: Count) -> Count:
        """How many places so many entries take."""
        return count + self.memory * -(-count // self.every)

    def place(self, number: Count) -> Count:
        """Where a row's entry of this number stands, from 0 on."""
        return number + self.memory * (number // self.every + 1)

    def split(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the entry at each place of a row, or of the next one where memory stands; and how
        far the place is within its block (memory below `memory`)."""
        block, inside = places // (self.every + self.memory), places % (self.every + self.memory)
        return block * self.every + (inside - self.memory).clamp(min=0), inside

    def lasting(self, places: Tensor, prepended: Tensor | int) -> Tensor:
        """Bool, True where memory or one of the row's first `prepended` entries stands."""
        number, inside = self.split(places)
        return (inside < self.memory) | (number < prepended)


@dataclass(frozen=True)
class Weave:
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
    columns: Tensor
    index: Tensor | None = None
    places: Tensor | None = None
    front: int = 0

    def forth(self, memory: Tensor, stream: Tensor) -> Tensor:
        """[M, D] and [B, N, D] -> [B, L, D]."""
        if self.index is None and not self.front:
            return stream
        both = torch.cat([memory.expand(stream.shape[0], -1, -1), stream], dim=1)
        return both if self.index is None else _take(both, self.index)

    def back(self, woven: Tensor) -> Tensor:
        """[B, L, D] -> [B, N, D]."""
        return woven[:, self.front :] if self.places is None else _take(woven, self.places)

    def mask(self, given: Tensor, keys: Tensor) -> Tensor:
        """A mask of the stream's entries -> one of places: memory sees all and is seen by all.

        Args:
            given: [1 or B, 1 or H, N, S] bool.
            keys: [1 or B, places] long, the entry of the stream at each place of the keys; -1 for none.
        """
        wide = F.pad(given, (1, 0, 1, 0), value=True).transpose(1, 2)  # [1 or B, N + 1, 1 or H, S + 1]
        rows = torch.arange(given.shape[0], device=given.device)[:, None, None]
        queries, seen = self.columns[:, :, None] + 1, keys[:, None] + 1
        return wide[rows, queries, :, seen].permute(0, 3, 1, 2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """[B, S, D] by [1 or B, L] -> [B, L, D]."""
    if index.shape[0] == 1:
        return x.index_select(1, index[0])
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def weave_plain(pattern: Pattern, held: int, count: int, prepended: int, device: torch.device) -> Weave:
    """Rows without padding, all alike: `count` entries behind `held` ones."""
    start, end = pattern.woven(held), pattern.woven(held + count)
    places = torch.arange(start, end, device=device)[None]
    number, inside = pattern.split(places)
    memory = inside < pattern.memory
    columns = torch.where(memory, -1, number - held)
    layout = replace(Layout.plain(end - start, device, start), lasting=memory | (number < prepended))
    if not pattern.memory or (held and end - start == count):
        return Weave(layout, columns)
    # a compiled graph of any length must not know whether there is one block
    known = pattern.every == ENDLESS or not torch.compiler.is_compiling()
    if known and held % pattern.every == 0 and count <= pattern.every:
        return Weave(layout, columns, front=pattern.memory)
    index = torch.where(memory, inside, columns + pattern.memory)
    numbers = torch.arange(held, held + count, device=device)[None]
    return Weave(layout, columns, index, pattern.place(numbers) - start)


def weave_rows(pattern: Pattern, real: Tensor, prepended: int) -> Weave:
    """Rows with padding; `real` [B, N] bool, of it `prepended` in front.

    Hidden tokens in front of the first real one, and hidden prepended embeddings, are left out; tokens that
    hide further behind keep their places.
    """
    front, tokens = real[:, :prepended], real[:, prepended:]
    counted = torch.cat([front, tokens.cumsum(dim=1) > 0], dim=1)
    numbers = counted.cumsum(dim=1) - 1
    length = pattern.woven(real.shape[1])
    first = length - pattern.woven(counted.sum(dim=1, keepdim=True))
    places = torch.where(counted, first + pattern.place(numbers), -1)
    columns = _columns(places, length)
    own = torch.arange(length, device=real.device) - first  # [B, L], negative in front of the row
    number, inside = pattern.split(own)
    last = torch.where(real, numbers, -1).amax(dim=1, keepdim=True)
    # the memory in front of a block is real where the block or one behind it holds a real entry
    begins = number - (inside - pattern.memory).clamp(min=0)
    padding = torch.where(columns < 0, (own >= 0) & (begins <= last), real.gather(1, columns.clamp(min=0)))
    layout = Layout(own.clamp(min=0), padding, lasting=columns < prepended)
    return Weave(layout, columns, _index(pattern, columns, inside, own), places.clamp(min=0))


def weave_packed(pattern: Pattern, tokens: Layout) -> Weave:
    """Rows of several sequences: each has memory of its own."""
    numbers, segments, real = tokens.positions, tokens.segments, tokens.padding
    assert segments is not None
    assert real is not None
    count, sequences = tokens.length, tokens.sequences
    held = numbers.new_zeros(segments.shape[0], sequences + 1).scatter_add(
        1, segments, torch.ones_like(segments)
    )
    # what stands behind the last sequence has no memory
    sizes = torch.cat([pattern.woven(held[:, :-1]), held[:, -1:]], dim=1)
    ends = sizes.cumsum(dim=1)
    blocks = min(count, (count + (pattern.every - 1) * sequences) // pattern.every)
    length = count + pattern.memory * blocks
    first, origins = length - ends[:, -1:], ends - sizes
    inward = torch.where(real, pattern.place(numbers), numbers)
    places = first + origins.gather(1, segments) + inward
    columns = _columns(places, length)
    content = torch.arange(length, device=real.device) - first
    woven = torch.searchsorted(ends, content.contiguous(), right=True).clamp(max=sequences)
    own = content - origins.gather(1, woven)
    _, inside = pattern.split(own)
    padding = torch.where(columns < 0, content >= 0, real.gather(1, columns.clamp(min=0)))
    layout = Layout(own.clamp(min=0), padding, woven, sequences=sequences, lasting=columns < 0)
    return Weave(layout, columns, _index(pattern, columns, inside, content), places)


def _columns(places: Tensor, length: int) -> Tensor:
    """[B, L] long, which entry has each place; -1 for none."""
    batch, count = places.shape
    columns = places.new_full((batch, length + 1), -1)
    numbers = torch.arange(count, device=places.device).expand(batch, -1)
    columns = columns.scatter(1, torch.where(places < 0, length, places), numbers)
    return columns[:, :length]


def _index(pattern: Pattern, columns: Tensor, inside: Tensor, own: Tensor) -> Tensor:
    """[B, L] long into memory and stream; what stands in front of a row is any."""
    memory = torch.where(own < 0, 0, inside)
    return torch.where(columns < 0, memory, columns + pattern.memory)
