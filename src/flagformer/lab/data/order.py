"""Items of a split and rows of a batch: every row once in each epoch of training, consecutive rows in
evaluation."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from flagformer.lab.data import SPLITS, Split, draws
from flagformer.lab.data.file import EDGES
from flagformer.lab.data.permutation import permuted
from flagformer.lab.data.text import GOLDEN
from flagformer.lab.data.token_store import UNITS

Order = Literal["epochs", "random"]


def rows_of_batch(
    count: int, split: Split, step: int, seed: int, batch_size: int, order: Order = "epochs"
) -> Any:
    """The indices of a batch's rows among `count` rows of a split, int64 [B].

    Training rows are those of `order`: each once in every epoch, in an order of its own, or drawn with
    replacement. A held-out batch has consecutive rows; batches are spread over the split.
    """
    if split != "train":
        origin = int((seed + step) * GOLDEN % 1.0 * count)
        return (origin + np.arange(batch_size)) % count
    if order == "random":
        return torch.randint(count, (batch_size,), generator=draws(split, seed, step)).numpy()
    number = step * batch_size + np.arange(batch_size)
    epochs, which = number // count, number % count
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        now = epochs == epoch
        which[now] = permuted(which[now], count, "epoch", seed, epoch)
    return which


def numbers_of_split(split: Split, count: int, by: str, hashes: Any = None, files: Any = None) -> Any:
    """The numbers of the items of a split among `count`, int64 [N], in order.

    Args:
        by: "files", "hash" or "position".
        hashes: uint64 [count], for "hash".
        files: the split of each item, as in `Collection.files`, for "files".
    """
    low, high = EDGES[split]
    if by == "hash":
        where = np.asarray(hashes) / UNITS
        return np.flatnonzero((where >= low) & (where < high))
    if by == "position":
        return np.arange(int(low * count), int(high * count))
    files = np.asarray(files)
    shared = np.flatnonzero(files < 0)
    if split == "train" or not len(shared):
        return np.flatnonzero(files == SPLITS.index(split))
    half = len(shared) // 2
    return shared[:half] if split == "validation" else shared[half:]
