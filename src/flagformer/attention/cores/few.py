"""Attention of chunks of queries to stretches of keys, by whatever kernel serves the model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePath
from flagformer.flow import KeyValues, Pairs, SideInputs, Spots
from flagformer.ops.attend import repeat_groups

MAPS = "attn.weights"


class Few(NamedTuple):
    """Chunks in place of T * S pairs.

    Attributes:
        q: [B, h, N, g, K].
        k: [B, 1 or h, N, s, K].
        v: [B, 1 or h, N, s, V].
        visible: [1 or B, 1 or h, N, g, s] bool, before the terms of the forward.
        spots: which queries and keys these are.
        rows: [1 or B, 1 or h, N, g] long, the number of each query; T where the place is empty.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor
    spots: Spots
    rows: Tensor


def attend_few(kernel: Kernel, path: ScorePath, few: Few, kv: KeyValues, side: SideInputs) -> Tensor:
    """[B, h, N, g, V]; the seats of `kv` stand before every chunk. Maps are kept where they are asked for."""
    terms = side.terms[kv.window]
    visible, told = few.visible, terms.visible(few.spots)
    visible = visible if told is None else visible & told
    if kv.tied:
        visible = _apart(visible, few.spots, terms.before, kv.seats)
    bias = terms.bias_at(few.spots)
    batch, count = few.q.shape[0], few.q.shape[2]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in few[:3])  # [B * N, h, ...]
    pairs = Pairs.few(
        _blocks(visible, batch, count), None if bias is None else _blocks(bias, batch, count), kv.seats
    )
    if kv.seats:
        k, v = (_seated(x, stored[:1, :, : kv.seats]) for x, stored in ((k, kv.k), (v, kv.v)))
    if side.tape.wants(MAPS):
        side.tape.keep(MAPS, _spread(path(q, k, pairs).unflatten(0, (batch, count)), few, kv, side))
    return kernel(q, k, v, pairs).unflatten(0, (batch, count)).transpose(1, 2)


def _apart(visible: Tensor, spots: Spots, before: int, seats: int) -> Tensor:
    """Who meets whom where keys are queries: itself only where there is nothing else."""
    own = spots.k == spots.q + before
    others = visible & ~own
    if seats:
        return others
    return others | (visible & own & ~others.any(dim=-1, keepdim=True))


def _blocks(x: Tensor, batch: int, count: int) -> Tensor:
    """[1 or B, h, N, g, s] -> [B * N, h, g, s]."""
    return x.expand(batch, -1, count, -1, -1).transpose(1, 2).flatten(0, 1)


def _seated(x: Tensor, front: Tensor) -> Tensor:
    """Seats [1, G, M, K], the same for every row, in front of every block's keys [B * N, G or h, s, K]."""
    front = repeat_groups(front, x.shape[1])
    return torch.cat([front.expand(x.shape[0], x.shape[1], -1, -1), x], dim=2)


def _spread(weights: Tensor, few: Few, kv: KeyValues, side: SideInputs) -> Tensor:
    """Weights [B, N, h, g, seats + s] of chunks -> [B, h, T, seats + S]."""
    weights = weights.transpose(1, 2)  # [B, h, N, g, seats + s]
    seats, keys = kv.seats, kv.k.shape[2] - kv.seats
    batch, heads, count, size, _ = weights.shape
    length = side.layout.length
    of_keys = few.spots.k.expand(batch, heads, count, size, -1)
    rows = weights.new_zeros(batch, heads, count, size, keys).scatter_add(4, of_keys, weights[..., seats:])
    rows = torch.cat([weights[..., :seats], rows], dim=-1).flatten(2, 3)
    of_queries = few.rows.expand(batch, heads, count, size).flatten(2)[..., None]
    spare = weights.new_zeros(batch, heads, length + 1, seats + keys)  # one row for places that are empty
    return spare.scatter(2, of_queries.expand_as(rows), rows)[:, :, :length]
