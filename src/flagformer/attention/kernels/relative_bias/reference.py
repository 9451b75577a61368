"""The operator `by_distance` in plain torch, over all pairs: tests compare both."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flow import RelativeRange


def attend(
    q: Tensor, k: Tensor, v: Tensor, biases: Tensor, groups: Tensor | None, span: RelativeRange, scale: float
) -> Tensor:
    """softmax(scale q k^T + bias of the distance) v; queries without keys get zeros."""
    queries, keys = (torch.arange(x.shape[2], device=x.device) for x in (q, k))
    entry = span.offset + queries[:, None] - keys - span.nearest
    outside = (entry < 0) | (entry >= biases.shape[1])
    bias = biases[:, entry.clamp(0, biases.shape[1] - 1)].masked_fill(outside, float("-inf"))[None]
    if groups is not None:  # a padded key of group g has -1 - g, which no query has
        of_q = torch.where(groups < 0, -1 - groups, groups)[:, span.offset :]
        bias = bias.masked_fill((of_q[:, :, None] != groups[:, None])[:, None], float("-inf"))
    no_key = (bias == float("-inf")).all(dim=-1, keepdim=True)
    weights = (scale * q @ k.mT + bias).masked_fill(no_key, 0.0).softmax(dim=-1)
    return weights.masked_fill(no_key, 0.0) @ v
