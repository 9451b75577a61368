"""One vector for each row, from the outputs of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

POOLING = ("first", "mean", "class", "last")


def pooled(x: Tensor, valid: Tensor | None, pooling: str) -> Tensor:
    """[B, T, D] -> [B, D]: the first or last valid token of each row, or the mean over its valid tokens.

    Args:
        valid: [B, T] bool, True for tokens, at least one in each row; None: all are.
        pooling: "first", "last" or "mean".
    """
    if valid is None:
        return x.mean(dim=1) if pooling == "mean" else x[:, 0 if pooling == "first" else -1]
    if pooling != "mean":
        index = valid.int().argmax(dim=1)
        if pooling == "last":
            index = valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)
        return x[torch.arange(len(x), device=x.device), index]
    return x.masked_fill(~valid[..., None], 0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
