"""A function of tokens, chunk by chunk with checkpointing: its intermediate tensors exist for one chunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flagformer.ops.traced import transformed


def checkpointed_chunks(function: Callable[[Tensor], Tensor], x: Tensor, parts: int) -> Tensor:
    """`function(x)` of x [B, T, D], for T / parts tokens at a time, recomputed in the backward.

    `function` must treat each token independently. Under transforms of `torch.func`, which do not support
    checkpointing, all intermediate tensors are saved.
    """
    chunks = x.chunk(parts, dim=1)
    if torch.compiler.is_exporting():  # chunks of a single row are contiguous, of several rows they are not
        chunks = tuple(chunk.clone(memory_format=torch.contiguous_format) for chunk in chunks)
    if torch.is_grad_enabled() and len(chunks) > 1 and not transformed():
        return torch.cat([checkpoint(function, chunk, use_reentrant=False) for chunk in chunks], dim=1)
    return torch.cat([function(chunk) for chunk in chunks], dim=1)
