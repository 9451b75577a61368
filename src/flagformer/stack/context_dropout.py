"""Dropout of context tokens in cross-attention (Perceiver AR, arXiv:2202.07765)."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.ops.drop import keep_some
from flagformer.stack.inputs import check_padding


def drop_context(context: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """The mask [B, S] of the context tokens that all cross-attention of one training forward reads.

    A random fraction `rate` of each row's valid tokens is False, drawn from torch's default generator; at
    least one token of each row is kept. Departure: the paper drops tokens from the input; a mask supports
    rows of different lengths.

    Args:
        context: [B, S, D_context].
        mask: [B, S] bool, True for valid tokens; None: all are valid.
    """
    shape = context.shape[:2]
    if mask is None:
        valid = torch.ones(shape, dtype=torch.bool, device=context.device)
    else:
        valid = check_padding("context_mask", mask, *shape)
    return keep_some(valid, 1 - rate)
