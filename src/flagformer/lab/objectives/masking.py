"""Masked tokens: a fixed number of random positions in each row."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.lab.data import IGNORE


def masked_positions(counts: Tensor, seq_len: int, generator: torch.Generator) -> Tensor:
    """bool [B, T], True at `counts` [B] random positions of each row, all sets equally likely."""
    ranks = torch.rand(len(counts), seq_len, generator=generator).argsort(1).argsort(1)
    return ranks < counts[:, None]


def targets_at(ids: Tensor, positions: Tensor) -> Tensor:
    """The ids at the positions, `IGNORE` elsewhere: [B, T]."""
    return torch.where(positions, ids, IGNORE)
