"""Sums per key over the blocks whose range contains it: reading rows takes a fifth of the time of adding."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.attention.kernels.key_ranges.blocks import KeyRangeBlocks


class SegmentSum(NamedTuple):
    """Segments of result rows, one segment a key (compressed sparse rows).

    Attributes:
        rows: long, the result rows of the first key, of the second, and so on.
        offsets: [B * H * S] long, where each key's segment begins in `rows`.
    """

    rows: Tensor
    offsets: Tensor

    @staticmethod
    def of(blocks: KeyRangeBlocks) -> SegmentSum:
        keys, length = blocks.keys, len(blocks.keys)
        # in the order of the sorted queries both are non-decreasing
        start, end = blocks.start[:, 0][blocks.rank], blocks.end[:, -1][blocks.rank]
        started, ended = (x.bincount(minlength=length + 1).cumsum(0)[:length] for x in (start, end))
        rank = torch.empty_like(keys).scatter_(0, keys, torch.arange(length, device=keys.device))
        first = ended[rank]  # the first block that contains a key; the last is the last that has started
        count = started[rank] - first
        offsets = count.cumsum(0) - count
        block = (first - offsets).repeat_interleave(count)
        block += torch.arange(len(block), device=block.device)
        key_offset = torch.tensor(blocks.key_offsets()[:-1], device=start.device)[blocks.rank]
        return SegmentSum((key_offset - start)[block] + rank.repeat_interleave(count), offsets)

    def sums(self, x: Tensor) -> Tensor:
        """Sums of result rows [rows, K], one a key: [B * H * S, K]."""
        return F.embedding_bag(self.rows, x, self.offsets, mode="sum")
