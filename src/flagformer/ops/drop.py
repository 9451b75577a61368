"""Random masking of tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_some(valid: Tensor, share: float) -> Tensor:
    """[B, S] bool, True for a random `share` of the tokens of each row, rounded down, at least one.

    Args:
        valid: [B, S] bool, True for tokens, False for padding.
    """
    count = (valid.sum(dim=-1, keepdim=True) * share).long().clamp(min=1)
    noise = torch.rand(valid.shape, device=valid.device).masked_fill(~valid, -1.0)
    rank = noise.argsort(dim=-1, descending=True).argsort(dim=-1)
    return valid & (rank < count)


def forgetful_causal_mask(valid: Tensor, positions: Tensor, mask_prob: float) -> Tensor:
    """[B, 1, T, T] bool, the keys that are allowed: a random part of each row's tokens is masked.

    Args:
        valid: [B, T] bool.
        positions: [1 or B, T], each token's position in its sequence; tokens at 0 and the first valid token
            of a row are never masked, so that every token can attend to one.
        mask_prob: the fraction of the other valid tokens to mask, rounded up.
    """
    first = (positions == 0) | (valid & (valid.cumsum(dim=-1) == 1))
    others = valid & ~first
    allowed = first | keep_some(others, 1 - mask_prob) | ~valid
    return allowed[:, None, None].expand(-1, -1, valid.shape[1], -1)
