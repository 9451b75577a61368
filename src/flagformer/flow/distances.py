"""Pairs that a table says: whether two tokens meet, and what is added to their score, by their distance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.flow.mask import Causal, Mask, Padding, Segments, Window
from flagformer.ops.bias_table import RelativeRange


@dataclass(frozen=True)
class Reach:
    """What rules leave in sight, by distance in places: nearest ... farthest.

    Attributes:
        offset: place of the first query minus that of the first key.
        causal, window: whether later keys, or earlier ones, are cut off.
        groups: see `Distances`.
    """

    offset: int
    nearest: int
    farthest: int
    causal: bool
    window: bool
    groups: Tensor | None

    @staticmethod
    def of(mask: Mask, queries: Layout, keys: Layout) -> Reach | None:
        """None where distances do not tell: a prefix, a window around what lasts, a mask or positions of the
        user's own."""
        if not (queries.contiguous_positions and keys.contiguous_positions):
            return None
        nearest, farthest = queries.start - (keys.end - 1), queries.end - 1 - keys.start
        causal = window = False
        padding = segments = None
        for rule in mask.rules:
            if isinstance(rule, Causal):
                nearest, causal = max(nearest, 0), True
            elif isinstance(rule, Window) and keys.always_visible is None:
                farthest, window = min(farthest, rule.width - 1), True
            elif isinstance(rule, Padding):
                padding = keys.valid
            elif isinstance(rule, Segments):
                segments = keys.segment_ids
            else:
                return None
        return Reach(
            queries.start - keys.start, nearest, farthest, causal, window, _groups(padding, segments)
        )


@dataclass(frozen=True)
class Distances:
    """A table in place of a mask and a bias of T * S.

    Attributes:
        biases: [1 or H, L], of the distances span.nearest ... span.nearest + L - 1; others do not meet.
        groups: [1 or B, S] long or None: tokens of different numbers do not meet; a padded key of group g has
            -1 - g.
        span: where the table lies.
    """

    biases: Tensor
    groups: Tensor | None
    span: RelativeRange

    @staticmethod
    def of(biases: Tensor, same_from: int | None, reach: Reach) -> Distances:
        """`same_from`: biases of distances from here on are equal."""
        # what a window cuts off is not the same as what it leaves
        same = -1 if same_from is None or reach.window else max(same_from, reach.nearest)
        return Distances(biases, reach.groups, RelativeRange(reach.offset, reach.nearest, same))

    def of_heads(self, heads: slice) -> Distances:
        """The same for some of the heads."""
        return replace(self, biases=self.biases[heads]) if len(self.biases) > 1 else self


def _groups(padding: Tensor | None, segments: Tensor | None) -> Tensor | None:
    if padding is None:
        return segments
    groups = torch.zeros_like(padding, dtype=torch.long) if segments is None else segments
    return torch.where(padding, groups, -1 - groups)
