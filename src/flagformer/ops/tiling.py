"""Pieces of long rows: a step on all of one waits for memory; of a piece the results stay in a core's cache
until the next step reads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flagformer.ops.traced import traced

TILE_ELEMENTS = 1 << 19  # of a piece, for each thread


def longest_piece(heads: int, width: int, threads: int = 1) -> int:
    """Tokens that a piece holds, each of so many heads (of all rows) of a width."""
    return max(TILE_ELEMENTS * threads // (heads * width), 1)


def sequence_tiles(x: Tensor) -> list[slice]:
    """Of the T tokens of x [B, H, T, K], as many at a time as stay in a core's cache.

    All of them in a graph, and on other devices, where each call costs more than it saves.
    """
    if traced() or x.device.type != "cpu":
        return [slice(None)]
    batch, heads, length, width = x.shape
    size = longest_piece(batch * heads, width, torch.get_num_threads())
    return [slice(start, start + size) for start in range(0, max(length, 1), size)]


def head_tiles(x: Tensor, groups: int) -> Iterator[tuple[slice, slice, slice]]:
    """Of x [B, H, T, K], as many rows, heads and groups of heads at a time as stay in a core's cache."""
    batch, heads, length, width = x.shape
    most = max(TILE_ELEMENTS * torch.get_num_threads() // max(length * width, 1), 1)  # heads
    share = heads // groups
    rows, of_row = max(most // heads, 1), max(most // share, 1)
    for row in range(0, batch, rows):
        for group in range(0, groups, of_row):
            behind = min(group + of_row, groups)
            yield slice(row, row + rows), slice(group * share, behind * share), slice(group, behind)
