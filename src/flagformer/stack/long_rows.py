"""Row lengths at which layers change their algorithm, and longer rows for tests."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from flagformer.ops.lengths import LENGTHS


def path_change_lengths(layers: nn.Module) -> list[int]:
    """Return the lengths at which modules change their algorithm: `path_changes_at`, and `LENGTHS`."""
    own = (length for part in layers.modules() for length in getattr(part, "path_changes_at", ()))
    return sorted({*LENGTHS, *own})


def long_rows(layers: nn.Module, longest: int) -> tuple[int, ...]:
    """Return row lengths, at most `longest`, that together use every algorithm of these layers.

    Each is a quarter longer than the last change of a module between two of `LENGTHS`.
    """
    found = []
    for low, high in pairwise((0, *LENGTHS, longest + 1)):
        changes = [
            length for length in path_change_lengths(layers) if low <= length < high and length <= longest
        ]
        if changes:
            found.append(min(changes[-1] + changes[-1] // 4, longest))
    return tuple(dict.fromkeys(found))
