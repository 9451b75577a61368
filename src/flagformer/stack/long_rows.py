"""Lengths from which on rows are computed in another way, and rows to test that are longer."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from flagformer.ops.lengths import LENGTHS


def path_change_lengths(layers: nn.Module) -> list[int]:
    """Lengths at which a module computes in another way: its `path_changes_at`, and that of long rows."""
    own = (length for part in layers.modules() for length in getattr(part, "path_changes_at", ()))
    return sorted({*LENGTHS, *own})


def long_rows(layers: nn.Module, longest: int) -> tuple[int, ...]:
    """Lengths of rows, at most `longest`, that go by every way in which these layers compute.

    One row is longer than all lengths between two general ones at which a part turns, by a quarter.
    """
    found = []
    for low, high in pairwise((0, *LENGTHS, longest + 1)):
        turns = [
            length for length in path_change_lengths(layers) if low <= length < high and length <= longest
        ]
        if turns:
            found.append(min(turns[-1] + turns[-1] // 4, longest))
    return tuple(dict.fromkeys(found))
