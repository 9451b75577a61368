"""Orders of heads and of rotated dimensions that differ between libraries, as index permutations."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_heads(heads: int, groups: int) -> Tensor:
    """[H]: which of its query heads stands at each place here.

    x-transformers lets query head h read key head h % G; here consecutive query heads share a key head.
    """
    return torch.arange(heads).view(heads // groups, groups).t().reshape(-1)


def half_split(width: int, rotated: int) -> Tensor:
    """[K]: which of its dimensions stands at each place here.

    x-transformers turns neighbours (2i, 2i + 1) of the first `rotated` dimensions, here i and i + rotated / 2
    form a pair.
    """
    turned = torch.arange(rotated).view(-1, 2).t().reshape(-1)
    return torch.cat((turned, torch.arange(rotated, width)))


def rows_by_head(weight: Tensor, width: int, heads: Tensor | None, dims: Tensor | None) -> Tensor:
    """[H * K, D] with its rows regrouped by head and by dimension within a head."""
    split = weight.view(-1, width, weight.shape[-1])
    return _picked(split, heads, dims).reshape(weight.shape)


def columns_by_head(weight: Tensor, width: int, heads: Tensor) -> Tensor:
    """[D, H * K] with its columns regrouped by head."""
    return rows_by_head(weight.t(), width, heads, None).t()


def per_head(values: Tensor, heads: Tensor | None, dims: Tensor | None) -> Tensor:
    """[H, M, K] regrouped by head and by dimension."""
    return _picked(values.transpose(1, 2), heads, dims).transpose(1, 2)


def _picked(values: Tensor, heads: Tensor | None, dims: Tensor | None) -> Tensor:
    values = values if heads is None else values[heads]
    return values if dims is None else values[:, dims]
