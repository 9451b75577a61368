"""Tiles of long rows: an operation on a whole row waits for memory; the results of a tile stay in a core's
cache until the next operation reads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flagformer.ops.traced import traced

TILE_ELEMENTS = 1 << 19  # of a tile, for each thread


def tile_tokens(heads: int, width: int, threads: int = 1) -> int:
    """Tokens of a tile; `heads` counts those of all rows."""
    return max(TILE_ELEMENTS * threads // (heads * width), 1)


def sequence_tiles(x: Tensor) -> list[slice]:
    """Slices of the T tokens of x [B, H, T, K] that fit in a core's cache.

    One slice in a graph, and on other devices, where each call costs more than it saves.
    """
    if traced() or x.device.type != "cpu":
        return [slice(None)]
    batch, heads, length, width = x.shape
    size = tile_tokens(batch * heads, width, torch.get_num_threads())
    return [slice(start, start + size) for start in range(0, max(length, 1), size)]


def head_tiles(x: Tensor, groups: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of rows, heads and groups of heads of x [B, H, T, K] that fit in a core's cache."""
    batch, heads, length, width = x.shape
    fitting = max(TILE_ELEMENTS * torch.get_num_threads() // max(length * width, 1), 1)  # heads
    heads_per_group = heads // groups
    num_rows, num_groups = max(fitting // heads, 1), max(fitting // heads_per_group, 1)
    for row in range(0, batch, num_rows):
        for group in range(0, groups, num_groups):
            end = min(group + num_groups, groups)
            yield (
                slice(row, row + num_rows),
                slice(group * heads_per_group, end * heads_per_group),
                slice(group, end),
            )
