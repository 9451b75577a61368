"""Tokens in parts, one after the other: so that what a function holds within lives for one part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flagformer.ops.traced import transformed


def checkpointed_chunks(function: Callable[[Tensor], Tensor], x: Tensor, parts: int) -> Tensor:
    """`function` of x [B, T, D], for T / parts tokens at a time, each computed again for its gradient.

    It must treat each token by itself. Transforms of `torch.func` allow no repetition: there all is kept.
    """
    pieces = x.chunk(parts, dim=1)
    if torch.compiler.is_exporting():  # parts of one row lie without gaps: a program must not depend on that
        pieces = tuple(piece.clone(memory_format=torch.contiguous_format) for piece in pieces)
    if torch.is_grad_enabled() and len(pieces) > 1 and not transformed():
        return torch.cat([checkpoint(function, piece, use_reentrant=False) for piece in pieces], dim=1)
    return torch.cat([function(piece) for piece in pieces], dim=1)
