"""What the length of a row decides; nothing in an exported program, which serves all of them."""

from __future__ import annotations

import torch

from flagformer.ops.traced import transformed

# Training, 4 rows of 8 heads of 64, 1 thread, ms, table of distances and dense form at 128, 256, 512: ALiBi
# 6.5 6.3, 20.6 23.2, 66 90; T5 8.6 7.7, 25.5 25.5, 80 132. Stretches of clusters are no slower than chunks
# from about as many tokens on.
LONG = 256
LONG_TABLE = 1024  # distances in a table from which on larger chunks of queries pay: see `by_distance`
LENGTHS = (LONG, LONG_TABLE)  # of rows, from which on they may be computed in another way


def use_long_path(length: int) -> bool:
    """Whether forms for long rows pay: from `LONG` tokens on. An exported program would be bound to one side,
    and transforms of `torch.func` find rules for torch's own operators only: both take the form of those."""
    return not torch.compiler.is_exporting() and not transformed() and length >= LONG


def clamp_to_length(size: int, length: int) -> int:
    """`size`, or the length of a shorter row; in an exported program always `size`."""
    return size if torch.compiler.is_exporting() else min(size, length)


def spare(size: int) -> int:
    """Empty places to add to a row of which `size` are taken: none, or as many in an exported program, whose
    rows may be shorter."""
    return size if torch.compiler.is_exporting() else 0


def hides(window: int, length: int) -> bool:
    """Whether some of `length` keys lie outside a window; in an exported program always."""
    return torch.compiler.is_exporting() or window < length


def num_blocks(least: int) -> int:
    """How many blocks there are, of which so many are needed: one more in an exported program, as torch takes
    a size of one for a constant."""
    return least + int(torch.compiler.is_exporting())
