"""Where tokens stand: positions, padding and segments, made once for a forward."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The standing of T tokens; everything positional and every mask derives from it.

    Attributes:
        positions: [1 or B, T] long, each token's own position (its encoding, not its place in storage).
        padding: [1 or B, T] bool, True for real tokens; None when all are real.
        segments: [B, T] long, tokens of different segments never meet; None when there is one.
        start: the place in storage of the first token (what a decode state already holds).
        by_place: tokens that may meet are as far apart as their places; False when a user gave positions.
        sequences: how many sequences a row may hold.
        lasting: [1 or B, T] bool, True for memory tokens and prepended embeddings: a window counts the
            others, and never hides these; None where there are none.
    """

    positions: Tensor
    valid: Tensor | None = None
    segment_ids: Tensor | None = None
    start: int = 0
    contiguous_positions: bool = True
    num_segments: int = 1
    always_visible: Tensor | None = None

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    @property
    def end(self) -> int:
        return self.start + self.length

    def cache_positions(self) -> Tensor:
        """[T] long, the place of each token in storage: the order of time."""
        return torch.arange(self.start, self.end, device=self.positions.device)

    def masked_by(self, padding: Tensor) -> Layout:
        """The same standing, with only those tokens real that are also True in `padding` [B, T]."""
        both = padding if self.valid is None else self.valid & padding
        return replace(self, valid=both)

    def concat(self, other: Layout) -> Layout:
        """These tokens and, directly behind them, those of `other`; neither has segments."""
        assert self.end == other.start
        assert self.segment_ids is None
        assert other.segment_ids is None
        padding = None
        if self.valid is not None or other.valid is not None:
            padding = _joined(
                *(one.valid if one.valid is not None else one.all_valid() for one in (self, other))
            )
        positions = _joined(self.positions, other.positions)
        return Layout(
            positions,
            padding,
            start=self.start,
            contiguous_positions=self.contiguous_positions and other.contiguous_positions,
        )

    def all_valid(self) -> Tensor:
        """[1, T] bool: all tokens are real."""
        return torch.ones(1, self.length, dtype=torch.bool, device=self.positions.device)

    @staticmethod
    def arange(length: int, device: torch.device, start: int = 0) -> Layout:
        """T tokens in a row without padding."""
        places = torch.arange(start, start + length, device=device)
        return Layout(places[None], start=start)

    @staticmethod
    def left_padded(first: Tensor, length: int, start: int = 0) -> Layout:
        """Rows whose first real token stands at place `first` [B]; it has position 0."""
        places = torch.arange(start, start + length, device=first.device)
        offset = places - first[:, None]  # [B, T]
        return Layout(offset.clamp(min=0), valid=offset >= 0, start=start)

    @staticmethod
    def packed(lengths: Tensor, length: int) -> Layout:
        """Rows of several sequences, one behind the other; `lengths` [B, N], zeros where there are fewer.

        Positions start anew with each sequence; what stands behind the last one is padding.
        """
        ends = lengths.cumsum(dim=1)
        places = torch.arange(length, device=lengths.device).expand(lengths.shape[0], length).contiguous()
        segments = torch.searchsorted(ends, places, right=True)  # [B, T]
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=1)
        padding = places < ends[:, -1:]
        return Layout(places - starts.gather(1, segments), padding, segments, num_segments=lengths.shape[1])


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """[1 or B, T] and [1 or B, S] -> [1 or B, T + S]."""
    rows = max(first.shape[0], second.shape[0])
    return torch.cat([first.expand(rows, -1), second.expand(rows, -1)], dim=1)
