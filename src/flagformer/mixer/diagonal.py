"""A state with a decay for each of its dimensions: the recurrent definition, and its chunked form.

    h[t] = exp(decay[t]) h[t - 1] + x[t], for each dimension

The chunked form runs the recurrence in all chunks of tokens at once, and then between chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.mixer.scan import chunk_size, split_chunks
from flagformer.ops.full_precision import without_casts
from flagformer.ops.linear_recurrence import linear_recurrence


def diagonal_scan(
    decay: Tensor, x: Tensor, state: Tensor, chunk: int = 32, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the states in the form that is faster for their number.

    A token with decay 0 and x 0 leaves the state as it is.

    Args:
        decay: [B, T, R], the logarithm of the factor of the state, at most 0.
        x: [B, T, R], added to the state.
        state: [B, R], before the first token. Its dtype is that of the computation.
        chunk: tokens of a chunk, at most.
        starts: [B, T] bool, True where a document begins: the state before it is zero. None: nowhere.

    Returns:
        [B, T, R], the state after each token, and [B, R], that after the last.
    """
    with without_casts(state.device):
        size = chunk_size(x.shape[1], chunk)
        if size:
            return diagonal_chunked(decay, x, state, size, starts)
        return diagonal_recurrent(decay, x, state, starts)


def diagonal_recurrent(
    decay: Tensor, x: Tensor, state: Tensor, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    factor = decay.to(state.dtype).exp()
    if starts is not None:
        factor = factor.masked_fill(starts[..., None], 0.0)
    states = []
    for kept, added in zip(factor.unbind(1), x.to(state.dtype).unbind(1)):
        state = torch.addcmul(added, kept, state)
        states.append(state)
    return torch.stack(states, dim=1), state


def diagonal_chunked(
    decay: Tensor, x: Tensor, state: Tensor, chunk: int, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in chunks of `chunk` tokens."""
    length = x.shape[1]
    decay, x = (split_chunks(one.to(state.dtype), chunk) for one in (decay, x))  # [B, N, C, R]
    factor, from_start = decay.exp(), decay.cumsum(dim=2).exp()
    if starts is not None:
        starts = split_chunks(starts, chunk)[..., None]
        factor = factor.masked_fill(starts, 0.0)
        from_start = from_start.masked_fill(starts.cumsum(dim=2) != 0, 0.0)
    factor, added = (one.flatten(0, 1)[:, :, None] for one in (factor, x))
    own = linear_recurrence(factor, added, torch.zeros_like(added[:, 0]))[:, 1:, 0].reshape(x.shape)
    firsts = linear_recurrence(from_start[:, :, -1:], own[:, :, -1:], state[:, None])  # [B, N + 1, 1, R]
    out = torch.addcmul(own, from_start, firsts[:, :-1])
    return out.flatten(1, 2)[:, :length], firsts[:, -1, 0]
