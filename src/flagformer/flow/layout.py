"""Positions, padding and segments of tokens, computed once per forward."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Positions, validity and segments of T tokens; position encodings and masks are computed from it.

    Attributes:
        positions: [1 or B, T] long, the position of each token for position encodings.
        valid: [1 or B, T] bool, True for tokens, False for padding; None: all are valid.
        segment_ids: [B, T] long; attention stays within a segment. None: there is one segment.
        start: the cache position of the first token, the number of entries that a decode state stores.
        contiguous_positions: whether differences of positions within a segment equal those of cache
            positions; False for positions from the user.
        num_segments: maximum number of segments in a row.
        always_visible: [1 or B, T] bool, True for memory tokens and prepended embeddings, which a window
            neither counts nor masks; None: there are none.
        may_have_holes: whether there may be padding between valid tokens; dropping it changes distances.
    """

    positions: Tensor
    valid: Tensor | None = None
    segment_ids: Tensor | None = None
    start: int = 0
    contiguous_positions: bool = True
    num_segments: int = 1
    always_visible: Tensor | None = None
    may_have_holes: bool = False

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    @property
    def rows(self) -> int:
        """B where the rows of a batch differ, else 1."""
        parts = (self.positions, self.valid, self.segment_ids, self.always_visible)
        return max(part.shape[0] for part in parts if part is not None)

    @property
    def end(self) -> int:
        return self.start + self.length

    def cache_positions(self) -> Tensor:
        """[T] long, the cache position of each token, ascending."""
        return torch.arange(self.start, self.end, device=self.positions.device)

    def masked_by(self, valid: Tensor) -> Layout:
        """Return the layout with only those tokens valid that are also True in `valid` [B, T]."""
        both = valid if self.valid is None else self.valid & valid
        return replace(self, valid=both, may_have_holes=True)

    def concat(self, other: Layout) -> Layout:
        """Return the layout of these tokens followed by those of `other`; neither has segments."""
        assert self.end == other.start
        assert self.segment_ids is None
        assert other.segment_ids is None
        valid = None
        if self.valid is not None or other.valid is not None:
            valid = _joined(
                *(one.valid if one.valid is not None else one.all_valid() for one in (self, other))
            )
        positions = _joined(self.positions, other.positions)
        return Layout(
            positions,
            valid,
            start=self.start,
            contiguous_positions=self.contiguous_positions and other.contiguous_positions,
        )

    def all_valid(self) -> Tensor:
        """[1, T] bool, all True."""
        return torch.ones(1, self.length, dtype=torch.bool, device=self.positions.device)

    @staticmethod
    def arange(length: int, device: torch.device, start: int = 0) -> Layout:
        """Consecutive positions from `start` on, without padding."""
        positions = torch.arange(start, start + length, device=device)
        return Layout(positions[None], start=start)

    @staticmethod
    def left_padded(row_starts: Tensor, length: int, start: int = 0) -> Layout:
        """Rows whose first valid token is at index `row_starts` [B]; it has position 0."""
        index = torch.arange(start, start + length, device=row_starts.device)
        offset = index - row_starts[:, None]  # [B, T]
        return Layout(offset.clamp(min=0), valid=offset >= 0, start=start)

    @staticmethod
    def packed(lengths: Tensor, length: int) -> Layout:
        """Rows of several packed sequences; `lengths` [B, N], zeros where a row has fewer than N.

        Positions start from 0 in each sequence; the rest of a row after its last sequence is padding.
        """
        ends = lengths.cumsum(dim=1)
        index = torch.arange(length, device=lengths.device).expand(lengths.shape[0], length).contiguous()
        segment_ids = torch.searchsorted(ends, index, right=True)  # [B, T]
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=1)
        positions = index - starts.gather(1, segment_ids)
        return Layout(positions, index < ends[:, -1:], segment_ids, num_segments=lengths.shape[1])


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """[1 or B, T] and [1 or B, S] -> [1 or B, T + S]."""
    rows = max(first.shape[0], second.shape[0])
    return torch.cat([first.expand(rows, -1), second.expand(rows, -1)], dim=1)
