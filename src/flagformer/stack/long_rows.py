"""Lengths from which on rows are computed in another way, and rows to test that are longer."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from flagformer.ops.lengths import LENGTHS


def turning_lengths(layers: nn.Module) -> list[int]:
    """Where another form begins: for long rows in general, and beyond what a part says in `turns_at`."""
    own = (length for part in layers.modules() for length in getattr(part, "turns_at", ()))
    return sorted({*LENGTHS, *own})


def long_rows(layers: nn.Module, longest: int) -> tuple[int, ...]:
    """Lengths of rows, at most `longest`, that go by every way in which these layers compute.

    One row is longer than all lengths between two general ones at which a part turns, by a quarter.
    """
    found = []
    for low, high in pairwise((0, *LENGTHS, longest + 1)):
        turns = [length for length in turning_lengths(layers) if low <= length < high and length <= longest]
        if turns:
            found.append(min(turns[-1] + turns[-1] // 4, longest))
    return tuple(dict.fromkeys(found))
