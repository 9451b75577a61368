"""Which rows are long enough for the forms that serve long rows."""

from __future__ import annotations

import torch

# Training, 4 rows of 8 heads of 64, 1 thread, ms, table of distances and dense form at 128, 256, 512: ALiBi
# 6.5 6.3, 20.6 23.2, 66 90; T5 8.6 7.7, 25.5 25.5, 80 132. Stretches of clusters are no slower than chunks
# from about as many tokens on.
LONG = 256


def is_long(length: int) -> bool:
    """Whether a row has `LONG` tokens. None has in an exported program: that serves rows of every length by
    torch's own operators, and would be bound to one side of the bound otherwise."""
    return not torch.compiler.is_exporting() and length >= LONG
