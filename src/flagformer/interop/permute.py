"""Permutations of heads and rotated dimensions, whose order differs between the libraries."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_heads(heads: int, groups: int) -> Tensor:
    """Return the x-transformers index of each query head of this library, [H].

    In x-transformers query head h uses key head h % G; here consecutive query heads share a key head.
    """
    return torch.arange(heads).view(heads // groups, groups).t().reshape(-1)


def half_split(width: int, rotated: int) -> Tensor:
    """Return the x-transformers index of each dimension of a head of this library, [K].

    x-transformers rotates pairs (2i, 2i + 1) of the first `rotated` dimensions, this library pairs i and
    i + rotated / 2.
    """
    pairs = torch.arange(rotated).view(-1, 2).t().reshape(-1)
    return torch.cat((pairs, torch.arange(rotated, width)))


def rows_by_head(weight: Tensor, width: int, heads: Tensor | None, dims: Tensor | None) -> Tensor:
    """Return [H * K, D], or a bias [H * K], with its rows permuted by head and by dimension within a head."""
    split = weight.view(-1, width, *weight.shape[1:])
    return _permuted(split, heads, dims).reshape(weight.shape)


def columns_by_head(weight: Tensor, width: int, heads: Tensor) -> Tensor:
    """Return [D, H * K] with its columns permuted by head."""
    return rows_by_head(weight.t(), width, heads, None).t()


def per_head(values: Tensor, heads: Tensor | None, dims: Tensor | None) -> Tensor:
    """Return [H, M, K] permuted by head and by dimension."""
    return _permuted(values.transpose(1, 2), heads, dims).transpose(1, 2)


def _permuted(values: Tensor, heads: Tensor | None, dims: Tensor | None) -> Tensor:
    values = values if heads is None else values[heads]
    return values if dims is None else values[:, dims]
