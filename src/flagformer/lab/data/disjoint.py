"""Disjoint splits of generated rows: a hash of its input assigns each row to one split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flagformer.lab.data import Split

# Shares of the hash's eight values: half of all rows are for training.
SHARES: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2, 3), "validation": (4, 5), "test": (6, 7)}
VALUES = 8
TRIES = 64  # draws of a batch; each row of a draw is kept with probability 1/4 at least
_MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # of splitmix64, as int64


def rows_of_split(
    split: Split, draw: Callable[[], tuple[Tensor, Tensor]], count: int
) -> tuple[Tensor, Tensor]:
    """`count` rows of one split: rows from `draw`, inputs [B, S] and targets, without those of other splits.

    Raises:
        ValueError: too few rows belong to the split, because few different rows exist.
    """
    found: list[tuple[Tensor, Tensor]] = []
    total = 0
    for _ in range(TRIES):
        inputs, targets = draw()
        mine = torch.isin(hash_of(inputs), torch.tensor(SHARES[split]))
        found.append((inputs[mine], targets[mine]))
        total += int(mine.sum())
        if total >= count:
            inputs, targets = (torch.cat(parts)[:count] for parts in zip(*found))
            return inputs, targets
    raise ValueError(
        f"`seq_len` must be longer: {TRIES} draws gave {total} of {count} different rows for the {split} "
        "split, which shares no row with the others"
    )


def hash_of(rows: Tensor) -> Tensor:
    """Rows [B, S] -> a number from 0 to `VALUES` - 1 that depends on all ids and their positions, [B]."""
    state = torch.full((len(rows),), rows.shape[1], dtype=torch.long)
    for column in rows.T:
        state = _mixed(state ^ (column + 1))
    return state % VALUES


def _mixed(state: Tensor) -> Tensor:
    """splitmix64's finaliser, modulo 2 ** 64."""
    for multiplier, shift in zip(_MULTIPLIERS, (30, 27)):
        state = (state ^ _right(state, shift)) * multiplier
    return state ^ _right(state, 31)


def _right(state: Tensor, count: int) -> Tensor:
    """A logical shift to the right of int64."""
    return (state >> count) & ((1 << (64 - count)) - 1)
