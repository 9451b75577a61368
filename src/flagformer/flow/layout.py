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
    padding: Tensor | None = None
    segments: Tensor | None = None
    start: int = 0
    by_place: bool = True
    sequences: int = 1
    lasting: Tensor | None = None

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    @property
    def end(self) -> int:
        return self.start + self.length

    def places(self) -> Tensor:
        """[T] long, the place of each token in storage: the order of time."""
        return torch.arange(self.start, self.end, device=self.positions.device)

    def hide(self, padding: Tensor) -> Layout:
        """The same standing, with only those tokens real that are also True in `padding` [B, T]."""
        both = padding if self.padding is None else self.padding & padding
        return replace(self, padding=both)

    def then(self, other: Layout) -> Layout:
        """These tokens and, directly behind them, those of `other`; neither has segments."""
        assert self.end == other.start
        assert self.segments is None
        assert other.segments is None
        padding = None
        if self.padding is not None or other.padding is not None:
            padding = _joined(
                *(one.padding if one.padding is not None else one.real() for one in (self, other))
            )
        positions = _joined(self.positions, other.positions)
        return Layout(positions, padding, start=self.start, by_place=self.by_place and other.by_place)

    def real(self) -> Tensor:
        """[1, T] bool: all tokens are real."""
        return torch.ones(1, self.length, dtype=torch.bool, device=self.positions.device)

    @staticmethod
    def plain(length: int, device: torch.device, start: int = 0) -> Layout:
        """T tokens in a row without padding."""
        places = torch.arange(start, start + length, device=device)
        return Layout(places[None], start=start)

    @staticmethod
    def left_padded(first: Tensor, length: int, start: int = 0) -> Layout:
        """Rows whose first real token stands at place `first` [B]; it has position 0."""
        places = torch.arange(start, start + length, device=first.device)
        offset = places - first[:, None]  # [B, T]
        return Layout(offset.clamp(min=0), padding=offset >= 0, start=start)

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
        return Layout(places - starts.gather(1, segments), padding, segments, sequences=lengths.shape[1])


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """[1 or B, T] and [1 or B, S] -> [1 or B, T + S]."""
    rows = max(first.shape[0], second.shape[0])
    return torch.cat([first.expand(rows, -1), second.expand(rows, -1)], dim=1)
