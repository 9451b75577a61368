"""Attention of chunks of queries to stretches of keys, by whatever kernel serves the model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.flow import KeyValues, Layout, Pairs, QKIndices, SideInputs
from flagformer.ops.attend import repeat_kv
from flagformer.ops.cluster_topk import ClusterTopK, scatter_mean
from flagformer.ops.full_precision import accum_dtype

MAPS = "attn.weights"


class QKVBlocks(NamedTuple):
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
    allowed: Tensor
    indices: QKIndices
    rows: Tensor
    only_earlier: bool
    may_mask_all: bool = False
    prefix_kv: tuple[Tensor, Tensor] | None = None


def attend_blocks(
    kernel: Kernel, path: ScorePipeline, few: QKVBlocks, kv: KeyValues, side: SideInputs
) -> Tensor:
    """[B, N, h, g, V]; the seats of `kv` stand before every block. Maps are kept where they are asked for."""
    terms = side.terms[kv.window]
    visible, told = few.allowed, terms.allowed(few.indices, few.only_earlier)
    visible = visible if told is None else visible & told
    seats = kv.num_prefix_kv + (0 if few.prefix_kv is None else few.prefix_kv[0].shape[3])
    if kv.shared_qk:
        visible = _apart(visible, few.indices, terms.row_starts, seats)
    bias = terms.bias_at(few.indices)
    batch, count = few.q.shape[:2]
    q, k, v = (_joined(x) for x in few[:3])  # [B * N, h, ...]
    # a query is among its own keys, unless a rule hides it
    hides = few.may_mask_all or told is not None
    bias = None if bias is None else _blocks(bias, batch)
    pairs = Pairs.few(_blocks(visible, batch), bias, seats, hides, terms.learned)
    if few.prefix_kv is not None:
        k, v = (torch.cat([_blocks(x, batch).to(y), y], dim=2) for x, y in zip(few.prefix_kv, (k, v)))
    if kv.num_prefix_kv:
        k, v = (_seated(x, stored[:1, :, : kv.num_prefix_kv]) for x, stored in ((k, kv.k), (v, kv.v)))
    if side.collector.is_requested(MAPS):
        side.collector.record(MAPS, _spread(path(q, k, pairs).unflatten(0, (batch, count)), few, kv, side))
    return kernel(q, k, v, pairs).unflatten(0, (batch, count))


def attend_selected(
    kernel: Kernel,
    path: ScorePipeline,
    q: Tensor,
    kv: KeyValues,
    of_queries: ClusterTopK,
    of_keys: ClusterTopK,
    front: tuple[Tensor, Tensor] | None,
    side: SideInputs,
) -> Tensor:
    """[B, H, T, V]: queries that a centroid picks meet the keys it picks; of several centroids the mean."""
    few = QKVBlocks(
        rows_at(q, of_queries.indices),
        rows_at(kv.k[:, :, kv.num_prefix_kv :], of_keys.indices),
        rows_at(kv.v[:, :, kv.num_prefix_kv :], of_keys.indices),
        of_queries.valid[..., None] & of_keys.valid[..., None, :],
        QKIndices(of_queries.indices[..., None], of_keys.indices[..., None, :], side.heads),
        of_queries.indices.masked_fill(~of_queries.valid, q.shape[2]),
        only_earlier=False,
        may_mask_all=True,
        prefix_kv=front,
    )
    return scatter_mean(attend_blocks(kernel, path, few, kv, side), few.rows, q.shape[2])


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
    return repeat_kv(x.to(accum_dtype(x.dtype)), heads)


def groups_of(layout: Layout) -> list[Tensor | None]:
    """Which tokens [1 or B, T] stand for election together: the real ones, sequence by sequence."""
    if layout.segment_ids is None:
        return [layout.valid]
    real = layout.all_valid() if layout.valid is None else layout.valid
    return [real & (layout.segment_ids == number) for number in range(layout.num_segments)]


def _apart(visible: Tensor, spots: QKIndices, before: int, seats: int) -> Tensor:
    """Who meets whom where keys are queries: itself only where there is nothing else."""
    own = spots.kv_idx == spots.q_idx + before
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
    front = repeat_kv(front, x.shape[1])
    return torch.cat([front.expand(x.shape[0], x.shape[1], -1, -1), x], dim=2)


def _spread(weights: Tensor, few: QKVBlocks, kv: KeyValues, side: SideInputs) -> Tensor:
    """Weights [B, N, h, g, seats + s] of blocks -> [B, h, T, seats + S]."""
    batch, count, heads, size, _ = weights.shape
    seats, keys = weights.shape[4] - few.indices.kv_idx.shape[4], kv.k.shape[2] - kv.num_prefix_kv
    length = side.layout.length
    of_keys = few.indices.kv_idx.expand(batch, count, heads, size, -1)
    rows = weights.new_zeros(batch, count, heads, size, keys).scatter_add(4, of_keys, weights[..., seats:])
    rows = torch.cat([weights[..., :seats], rows], dim=-1).transpose(1, 2).flatten(2, 3)
    of_queries = few.rows.expand(batch, count, heads, size).transpose(1, 2).flatten(2)[..., None]
    spare = weights.new_zeros(batch, heads, length + 1, seats + keys)  # one row for places that are empty
    sums = spare.scatter_add(2, of_queries.expand_as(rows), rows)
    times = spare[..., :1].scatter_add(2, of_queries, torch.ones_like(rows[..., :1]))
    return (sums / times.clamp(min=1))[:, :, :length]
