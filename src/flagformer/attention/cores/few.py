"""Attention of chunks of queries to stretches of keys, by whatever kernel serves the model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePath
from flagformer.flow import KeyValues, Layout, Pairs, SideInputs, Spots
from flagformer.ops.attend import repeat_groups
from flagformer.ops.full_precision import wide
from flagformer.ops.picks import Picks, mean_of_picks

MAPS = "attn.weights"


class Few(NamedTuple):
    """Blocks in place of T * S pairs.

    Attributes:
        q: [B, N, h, g, K].
        k: [B, N, 1 or h, s, K].
        v: [B, N, 1 or h, s, V].
        visible: [1 or B, N, 1 or h, g, s] bool, before the terms of the forward.
        spots: which queries and keys these are.
        rows: [1 or B, N, 1 or h, g] long, the number of each query; T where the place is empty.
        only_earlier: nothing is visible that is later than its query.
        hides: whether a query, of an empty place for one, may see nothing.
        front: keys [1 or B, N, h, M, K] and values [1 or B, N, h, M, V] that a block has before its own,
            seen by all its queries; None for none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor
    spots: Spots
    rows: Tensor
    only_earlier: bool
    hides: bool = False
    front: tuple[Tensor, Tensor] | None = None


def attend_few(kernel: Kernel, path: ScorePath, few: Few, kv: KeyValues, side: SideInputs) -> Tensor:
    """[B, N, h, g, V]; the seats of `kv` stand before every block. Maps are kept where they are asked for."""
    terms = side.terms[kv.window]
    visible, told = few.visible, terms.visible(few.spots, few.only_earlier)
    visible = visible if told is None else visible & told
    seats = kv.seats + (0 if few.front is None else few.front[0].shape[3])
    if kv.tied:
        visible = _apart(visible, few.spots, terms.before, seats)
    bias = terms.bias_at(few.spots)
    batch, count = few.q.shape[:2]
    q, k, v = (_joined(x) for x in few[:3])  # [B * N, h, ...]
    # a query is among its own keys, unless a rule hides it
    hides = few.hides or told is not None
    bias = None if bias is None else _blocks(bias, batch)
    pairs = Pairs.few(_blocks(visible, batch), bias, seats, hides, terms.learned)
    if few.front is not None:
        k, v = (torch.cat([_blocks(x, batch).to(y), y], dim=2) for x, y in zip(few.front, (k, v)))
    if kv.seats:
        k, v = (_seated(x, stored[:1, :, : kv.seats]) for x, stored in ((k, kv.k), (v, kv.v)))
    if side.tape.wants(MAPS):
        side.tape.keep(MAPS, _spread(path(q, k, pairs).unflatten(0, (batch, count)), few, kv, side))
    return kernel(q, k, v, pairs).unflatten(0, (batch, count))


def attend_picked(
    kernel: Kernel,
    path: ScorePath,
    q: Tensor,
    kv: KeyValues,
    of_queries: Picks,
    of_keys: Picks,
    front: tuple[Tensor, Tensor] | None,
    side: SideInputs,
) -> Tensor:
    """[B, H, T, V]: queries that a centroid picks meet the keys it picks; of several centroids the mean."""
    few = Few(
        rows_at(q, of_queries.numbers),
        rows_at(kv.k[:, :, kv.seats :], of_keys.numbers),
        rows_at(kv.v[:, :, kv.seats :], of_keys.numbers),
        of_queries.real[..., None] & of_keys.real[..., None, :],
        Spots(of_queries.numbers[..., None], of_keys.numbers[..., None, :], side.heads),
        of_queries.numbers.masked_fill(~of_queries.real, q.shape[2]),
        only_earlier=False,
        hides=True,
        front=front,
    )
    return mean_of_picks(attend_few(kernel, path, few, kv, side), few.rows, q.shape[2])


def rows_at(x: Tensor, numbers: Tensor) -> Tensor:
    """x [B, G, S, K] at `numbers` [B, N, H, s] -> [B, N, H, s, K]; a group serves H / G heads."""
    batch, count, heads = numbers.shape[:3]
    groups, length = x.shape[1:3]
    of_head = torch.arange(heads, device=x.device).view(1, 1, -1, 1) // (heads // groups)
    rows = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    if count == 1:
        return x[rows, of_head, numbers]  # few of many: what is stored is not copied
    flat = ((rows * groups + of_head) * length + numbers).flatten()
    return x.reshape(-1, x.shape[3]).index_select(0, flat).view(*numbers.shape, -1)


def out_of_blocks(out: Tensor, slots: Tensor) -> Tensor:
    """[B, N, H, g, V] at `slots` [B, H, T] of N * g -> [B, H, T, V]."""
    batch, count, heads, size, _ = out.shape
    chunk, place = slots // size, slots % size  # [B, H, T]
    flat = (chunk * heads + torch.arange(heads, device=out.device)[:, None]) * size + place
    flat = flat + torch.arange(batch, device=out.device)[:, None, None] * (count * heads * size)
    return out.flatten(0, 3).index_select(0, flat.flatten()).view(*slots.shape, -1)


def of_heads(x: Tensor, heads: int) -> Tensor:
    """[B, G, S, K] -> [B, H, S, K], in fp32 at least."""
    return repeat_groups(x.to(wide(x.dtype)), heads)


def groups_of(layout: Layout) -> list[Tensor | None]:
    """Which tokens [1 or B, T] stand for election together: the real ones, sequence by sequence."""
    if layout.segments is None:
        return [layout.padding]
    real = layout.real() if layout.padding is None else layout.padding
    return [real & (layout.segments == number) for number in range(layout.sequences)]


def _apart(visible: Tensor, spots: Spots, before: int, seats: int) -> Tensor:
    """Who meets whom where keys are queries: itself only where there is nothing else."""
    own = spots.k == spots.q + before
    others = visible & ~own
    if seats:
        return others
    return others | (visible & own & ~others.any(dim=-1, keepdim=True))


def _blocks(x: Tensor, batch: int) -> Tensor:
    """[1 or B, N, h, g, s] -> [B * N, h, g, s]."""
    return _joined(x.expand(batch, -1, -1, -1, -1))


def _joined(x: Tensor) -> Tensor:
    """[B, N, ...] -> [B * N, ...]. By way of all axes: torch 2.13 joins the wrong two symbolic ones."""
    return x.flatten().view(x.shape[0] * x.shape[1], *x.shape[2:])


def _seated(x: Tensor, front: Tensor) -> Tensor:
    """Seats [1, G, M, K], the same for every row, in front of every block's keys [B * N, G or h, s, K]."""
    front = repeat_groups(front, x.shape[1])
    return torch.cat([front.expand(x.shape[0], x.shape[1], -1, -1), x], dim=2)


def _spread(weights: Tensor, few: Few, kv: KeyValues, side: SideInputs) -> Tensor:
    """Weights [B, N, h, g, seats + s] of blocks -> [B, h, T, seats + S]."""
    batch, count, heads, size, _ = weights.shape
    seats, keys = weights.shape[4] - few.spots.k.shape[4], kv.k.shape[2] - kv.seats
    length = side.layout.length
    of_keys = few.spots.k.expand(batch, count, heads, size, -1)
    rows = weights.new_zeros(batch, count, heads, size, keys).scatter_add(4, of_keys, weights[..., seats:])
    rows = torch.cat([weights[..., :seats], rows], dim=-1).transpose(1, 2).flatten(2, 3)
    of_queries = few.rows.expand(batch, count, heads, size).transpose(1, 2).flatten(2)[..., None]
    spare = weights.new_zeros(batch, heads, length + 1, seats + keys)  # one row for places that are empty
    sums = spare.scatter_add(2, of_queries.expand_as(rows), rows)
    times = spare[..., :1].scatter_add(2, of_queries, torch.ones_like(rows[..., :1]))
    return (sums / times.clamp(min=1))[:, :, :length]
