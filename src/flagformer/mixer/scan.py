"""A state with decay that reads and writes by keys: the recurrent definition, and its chunked form.

The state S [H, K, V] of a row changes at each token, and the token reads it:

    S <- exp(decay) S;   u = v, or beta (v - k S) by the delta rule;   S <- S + k u;   out = q S

With `beta` this is the gated delta rule (arXiv:2412.06464, section 3), without it the state space duality of
Mamba 2 (arXiv:2405.21060, section 6). The chunked form computes products within chunks of tokens, and one
recurrence between chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.ops.full_precision import without_casts
from flagformer.ops.lengths import num_blocks
from flagformer.ops.linear_recurrence import linear_recurrence

SHORT = 8  # below this many tokens the recurrent form is faster
MIN_CHUNK = 16


class ScanInputs(NamedTuple):
    """The inputs of a scan of T tokens.

    A token with decay 0 and beta 0 (without beta: v 0) leaves the state as it is.

    Attributes:
        q, k: [B, T, G, K]; group g serves the H / G heads from g H / G on.
        v: [B, T, H, V].
        decay: [B, T, H], the logarithm of the factor of the state, at most 0.
        beta: [B, T, H], the rate of the delta rule; None: v is added.
        starts: [B, T] bool, True where a document begins: the state before it is zero. None: nowhere.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor
    beta: Tensor | None
    starts: Tensor | None = None


def scan(inputs: ScanInputs, state: Tensor, chunk: int = 32) -> tuple[Tensor, Tensor]:
    """Compute the outputs in the form that is faster for their number.

    Args:
        state: [B, H, K, V], before the first token. Its dtype is that of the computation.
        chunk: tokens of a chunk, at most.

    Returns:
        [B, T, H, V], and the state after the last token.
    """
    with without_casts(state.device):
        size = chunk_size(inputs.q.shape[1], chunk)
        return chunked(inputs, state, size) if size else recurrent(inputs, state)


def chunk_size(length: int, most: int) -> int:
    """The tokens of a chunk for a row of `length` tokens, at most `most`; 0: the recurrent form is faster."""
    if torch.compiler.is_compiling():  # one graph serves all lengths but 1
        return 0 if length == 1 else most
    if length < SHORT:
        return 0
    return min(most, max(MIN_CHUNK, 1 << (length - 1).bit_length()))


def recurrent(inputs: ScanInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    q, k, v, decay = (x.to(state.dtype) for x in inputs[:4])
    factor = decay.exp()
    if inputs.starts is not None:
        factor = factor.masked_fill(inputs.starts[..., None], 0.0)
    length, heads, groups = q.shape[1], v.shape[2], q.shape[2]
    if groups != heads:
        q, k = (x.repeat_interleave(heads // groups, dim=2) for x in (q, k))
    betas = [None] * length if inputs.beta is None else inputs.beta.to(state.dtype).unbind(1)
    outputs = []
    for query, key, update, kept, beta in zip(*(x.unbind(1) for x in (q, k, v, factor)), betas):
        state = state * kept[..., None, None]
        if beta is not None:
            update = beta[..., None] * (update - (key[..., None, :] @ state)[:, :, 0])
        state = state + key[..., None] * update[:, :, None]
        outputs.append((query[..., None, :] @ state)[:, :, 0])
    return torch.stack(outputs, dim=1), state


class _Decay(NamedTuple):
    """Factors of decay in chunks of C tokens, each [B, G, R, N, C] but for `between`.

    Attributes:
        before: from the beginning of the chunk to each token.
        after: from each token to the end of the chunk.
        whole: [B, G, R, N], over the chunk.
        between: [B, G, R, N, C, C], from the second token to the first; 0 if the first is earlier.
    """

    before: Tensor
    after: Tensor
    whole: Tensor
    between: Tensor


def chunked(inputs: ScanInputs, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """The same in chunks of `chunk` tokens."""
    length, heads, groups = inputs.q.shape[1], inputs.v.shape[2], inputs.q.shape[2]

    def split(x: Tensor, groups: int) -> Tensor:
        """[B, T, H, ...] -> [B, G, H / G, N, C, ...]."""
        return split_chunks(x.to(state.dtype), chunk).movedim(3, 1).unflatten(1, (groups, -1))

    q, k, v = (split(x, groups) for x in inputs[:3])
    decay = _decay(split(inputs.decay, groups), inputs.starts, chunk)
    weights = (q @ k.mT) * decay.between
    read, write = q * decay.before[..., None], (k * decay.after[..., None]).mT
    if inputs.beta is None:
        factor, update, lost = decay.whole[..., None, None], v, None
    else:
        beta = split(inputs.beta, groups)[..., None]
        overlap = (beta * (k @ k.mT)) * decay.between
        both = torch.cat([beta * v, beta * k * decay.before[..., None]], dim=-1)
        # unitriangular: the diagonal and the elements above it are not read
        both = torch.linalg.solve_triangular(overlap, both, upper=False, unitriangular=True)
        update, lost = both.split([v.shape[-1], k.shape[-1]], dim=-1)
        eye = torch.eye(k.shape[-1], dtype=state.dtype, device=state.device)
        factor = decay.whole[..., None, None] * eye - write @ lost
    terms = [x.flatten(0, 2) for x in (factor, write @ update, state.unflatten(1, (groups, -1)))]
    states = linear_recurrence(*terms).unflatten(0, (-1, groups, heads // groups))
    first = states[:, :, :, :-1]
    if lost is not None:
        update = update - lost @ first
    out = read @ first + weights @ update
    out = out.flatten(1, 2).movedim(1, 3).flatten(1, 2)[:, :length]
    return out, states[:, :, :, -1].flatten(1, 2)


def split_chunks(x: Tensor, chunk: int) -> Tensor:
    """[B, T, ...] -> [B, N, C, ...], with zeros after the last token."""
    chunks = num_blocks(-(-x.shape[1] // chunk))
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, chunks * chunk - x.shape[1]))
    return x.unflatten(1, (-1, chunk))


def _decay(decay: Tensor, starts: Tensor | None, chunk: int) -> _Decay:
    """Factors of decay; 0 between tokens of different documents.

    The logarithm between two tokens is a sum of its own: the difference of two sums from the beginning of the
    chunk would lose digits. Documents are compared by their numbers, as sums with minus infinity are no
    numbers.
    """
    before = decay.cumsum(dim=-1).exp()
    whole = before[..., -1]
    pairs = torch.ones(chunk, chunk, dtype=torch.bool, device=decay.device)
    between = torch.where(pairs.tril(-1), decay[..., None], 0.0).cumsum(dim=-2)
    masked = pairs.triu(1)
    if starts is not None:
        number = split_chunks(starts, chunk).cumsum(dim=-1)[:, None, None]  # [B, 1, 1, N, C], of the document
        masked = masked | (number[..., None] != number[..., None, :])
        before = before.masked_fill(number != 0, 0.0)
        whole = whole.masked_fill(number[..., -1] != 0, 0.0)
    between = between.masked_fill(masked, -torch.inf).exp()
    return _Decay(before, between[..., -1, :], whole, between)
