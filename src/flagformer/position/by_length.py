"""LongRoPE with its two sets of divisors, of which each sequence takes one by its length (2402.13753)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.flow import Constant, Layout
from flagformer.ops.traced import readable


class ByLength(NamedTuple):
    """The rates of sequences of more than `original` tokens.

    In a plain forward the length of a sequence is known. A decode state keeps rotated keys, so that its first
    block decides: a sequence that a state begins with at most `original` tokens cannot grow beyond them.

    Attributes:
        rates: [R] fp32.
        original: the longest length of the other rates.
    """

    rates: Constant
    original: int

    def choose(self, short: Tensor, layout: Layout) -> Tensor:
        """short [R] -> the rates of each sequence, [1 or B, 1 or T, R]."""
        lengths = _begun(layout, self.original) if layout.start else _lengths(layout)
        return torch.where((lengths > self.original)[..., None], self.rates.on(short.device), short)


def _lengths(layout: Layout) -> Tensor:
    """[1 or B, 1 or T] long: the number of tokens of the sequence of each token."""
    last = layout.positions if layout.valid is None else layout.positions.where(layout.valid, 0)
    if layout.segment_ids is None:
        return last.amax(dim=1, keepdim=True) + 1
    rows = layout.segment_ids.shape[0]
    most = last.new_zeros(rows, layout.num_segments + 1)
    most = most.scatter_reduce(1, layout.segment_ids, last.expand(rows, -1), "amax")
    return most.gather(1, layout.segment_ids) + 1


def _begun(layout: Layout, original: int) -> Tensor:
    """[1 or B, 1]: the number of tokens that decide for those after a decode state's."""
    before, after = layout.positions[:, :1], layout.positions[:, -1:] + 1
    if readable(after) and bool(((before > 0) & (before <= original) & (after > original)).any()):
        text = f"`rotary_scaling` turns sequences of more than {original} tokens by other angles, and this"
        text = f"{text} decode state was begun with fewer: decode without a state (`cache_kv=False`), give"
        raise ValueError(
            f"{text} more than {original} tokens in the first block, or fix the choice by `seq_len`"
        )
    return torch.where(before > 0, before, after)
