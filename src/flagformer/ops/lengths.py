"""Decisions that depend on the length of a row; exported programs serve every length and make none."""

from __future__ import annotations

import torch

from flagformer.ops.traced import transformed

# Training, 4 rows of 8 heads of 64, 1 thread, ms, table of distances and dense form at 128, 256, 512: ALiBi
# 6.5 6.3, 20.6 23.2, 66 90; T5 8.6 7.7, 25.5 25.5, 80 132. Sorted key ranges of clusters are no slower than
# chunks from about the same length on.
LONG = 256
LONG_TABLE = 1024  # distances in a table from which on larger chunks of queries are faster: see `bias_table`
LENGTHS = (LONG, LONG_TABLE)  # of rows at which the computation may change


def use_long_path(length: int) -> bool:
    """Whether to use the operators for long rows: from `LONG` tokens on. Exported programs, which serve every
    length, and transforms of `torch.func`, which need torch's own operators, never use them."""
    return not torch.compiler.is_exporting() and not transformed() and length >= LONG


def clamp_to_length(size: int, length: int) -> int:
    """The smaller of `size` and `length`; in an exported program always `size`."""
    return size if torch.compiler.is_exporting() else min(size, length)


def spare(size: int) -> int:
    """Padding for a top-k of `size`: none, or `size` in an exported program, whose rows may be shorter."""
    return size if torch.compiler.is_exporting() else 0


def hides(window: int, length: int) -> bool:
    """Whether a window masks some of `length` keys; in an exported program always."""
    return torch.compiler.is_exporting() or window < length


def num_blocks(needed: int) -> int:
    """`needed`, or one more in an exported program, as torch treats a size of one as a constant."""
    return needed + int(torch.compiler.is_exporting())
