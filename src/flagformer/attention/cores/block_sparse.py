"""Block-sparse attention: blocks of queries and the keys gathered for each, by any kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.flow import AttentionBias, BlockBias, KeyValues, Layout, OutputCollector
from flagformer.flow.bias_views import dense_bias, without_self
from flagformer.ops.attend import repeat_kv
from flagformer.ops.cluster_topk import ClusterTopK, scatter_mean
from flagformer.ops.full_precision import accum_dtype

MAPS = "attn.weights"


class QKVBlocks(NamedTuple):
    """N blocks of h heads with g queries and s keys each.

    Attributes:
        q: [B, N, h, g, K].
        k: [B, N, 1 or h, s, K].
        v: [B, N, 1 or h, s, V].
        allowed: [1 or B, N, 1 or h, g, s] bool, before the rules of the forward.
        q_idx: [1 or B, N, 1 or h, g, 1] long, the query of each row, counted from the first.
        kv_idx: [1 or B, N, 1 or h, 1, s] long, the key of each column, counted from the first.
        rows: [1 or B, N, 1 or h, g] long, as `q_idx`, and T in rows without a query.
        only_earlier: no key is later than its query.
        may_mask_all: whether a row may have no key.
        prefix_kv: keys [1 or B, N, h, M, K] and values [1 or B, N, h, M, V] before those of each block, to
            which all its queries attend; None: there are none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    allowed: Tensor
    q_idx: Tensor
    kv_idx: Tensor
    rows: Tensor
    only_earlier: bool
    may_mask_all: bool = False
    prefix_kv: tuple[Tensor, Tensor] | None = None


def attend_blocks(
    kernel: Kernel,
    path: ScorePipeline,
    blocks: QKVBlocks,
    kv: KeyValues,
    bias: AttentionBias,
    collector: OutputCollector,
) -> Tensor:
    """Return [B, N, h, g, V]; every block attends to the prefix keys of `kv`. Records requested weights."""
    allowed, added = bias.gather(blocks.q_idx, blocks.kv_idx, blocks.only_earlier)
    # every block contains the own key of each query, which only a rule can mask
    masks_all = blocks.may_mask_all or allowed is not None
    allowed = blocks.allowed if allowed is None else blocks.allowed & allowed
    num_prefix_kv = kv.num_prefix_kv + (0 if blocks.prefix_kv is None else blocks.prefix_kv[0].shape[3])
    if kv.shared_qk:
        allowed = without_self(allowed, blocks.kv_idx == blocks.q_idx + bias.offset, num_prefix_kv)
    batch, count = blocks.q.shape[:2]
    q, k, v = (_joined(x) for x in blocks[:3])  # [B * N, h, ...]
    added = None if added is None else _blocks(added, batch)
    dense = dense_bias(_blocks(allowed, batch), added, num_prefix_kv, masks_all)
    of_blocks = BlockBias(dense, num_prefix_kv, bias.position_source().learned)
    if blocks.prefix_kv is not None:
        k, v = (torch.cat([_blocks(x, batch).to(y), y], dim=2) for x, y in zip(blocks.prefix_kv, (k, v)))
    if kv.num_prefix_kv:
        k, v = (_after_prefix(stored[:1, :, : kv.num_prefix_kv], x) for x, stored in ((k, kv.k), (v, kv.v)))
    if collector.is_requested(MAPS):
        weights = path(q, k, of_blocks).unflatten(0, (batch, count))
        collector.record(MAPS, _scattered(weights, blocks, bias.q.length, kv))
    return kernel(q, k, v, of_blocks).unflatten(0, (batch, count))


def attend_selected(
    kernel: Kernel,
    path: ScorePipeline,
    q: Tensor,
    kv: KeyValues,
    of_queries: ClusterTopK,
    of_keys: ClusterTopK,
    prefix_kv: tuple[Tensor, Tensor] | None,
    bias: AttentionBias,
    collector: OutputCollector,
) -> Tensor:
    """Return [B, H, T, V]: each centroid's queries attend to its keys; outputs are means over centroids."""
    blocks = QKVBlocks(
        rows_at(q, of_queries.indices),
        rows_at(kv.k[:, :, kv.num_prefix_kv :], of_keys.indices),
        rows_at(kv.v[:, :, kv.num_prefix_kv :], of_keys.indices),
        of_queries.valid[..., None] & of_keys.valid[..., None, :],
        of_queries.indices[..., None],
        of_keys.indices[..., None, :],
        of_queries.indices.masked_fill(~of_queries.valid, q.shape[2]),
        only_earlier=False,
        may_mask_all=True,
        prefix_kv=prefix_kv,
    )
    out = attend_blocks(kernel, path, blocks, kv, bias, collector)
    return scatter_mean(out, blocks.rows, q.shape[2])


def rows_at(x: Tensor, numbers: Tensor) -> Tensor:
    """x [B, G, S, K] at `numbers` [B, N, H, s] -> [B, N, H, s, K]; a group serves H / G heads."""
    batch, count, heads = numbers.shape[:3]
    groups, length = x.shape[1:3]
    of_head = torch.arange(heads, device=x.device).view(1, 1, -1, 1) // (heads // groups)
    rows = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    if count == 1:
        return x[rows, of_head, numbers]  # copies only the selected rows of the cache
    flat = ((rows * groups + of_head) * length + numbers).flatten()
    return x.reshape(-1, x.shape[3]).index_select(0, flat).view(*numbers.shape, -1)


def out_of_blocks(out: Tensor, slots: Tensor) -> Tensor:
    """[B, N, H, g, V] at `slots` [B, H, T] of N * g -> [B, H, T, V]."""
    batch, count, heads, size, _ = out.shape
    chunk, index = slots // size, slots % size  # [B, H, T]
    flat = (chunk * heads + torch.arange(heads, device=out.device)[:, None]) * size + index
    flat = flat + torch.arange(batch, device=out.device)[:, None, None] * (count * heads * size)
    return out.flatten(0, 3).index_select(0, flat.flatten()).view(*slots.shape, -1)


def of_heads(x: Tensor, heads: int) -> Tensor:
    """[B, G, S, K] -> [B, H, S, K], in fp32 at least."""
    return repeat_kv(x.to(accum_dtype(x.dtype)), heads)


def segments_of(layout: Layout) -> list[Tensor | None]:
    """Valid tokens [1 or B, T] of each segment, from which centroids select; None: all tokens."""
    if layout.segment_ids is None:
        return [layout.valid]
    valid = layout.all_valid() if layout.valid is None else layout.valid
    return [valid & (layout.segment_ids == number) for number in range(layout.num_segments)]


def _blocks(x: Tensor, batch: int) -> Tensor:
    """[1 or B, N, h, g, s] -> [B * N, h, g, s]."""
    return _joined(x.expand(batch, -1, -1, -1, -1))


def _joined(x: Tensor) -> Tensor:
    """[B, N, ...] -> [B * N, ...]; flattens all axes first, as torch 2.13 merges two wrong symbolic ones."""
    return x.flatten().view(x.shape[0] * x.shape[1], *x.shape[2:])


def _after_prefix(prefix: Tensor, x: Tensor) -> Tensor:
    """Prepend prefix keys [1, G, P, K], the same for every row, to keys [B * N, G or h, s, K] of blocks."""
    prefix = repeat_kv(prefix, x.shape[1])
    return torch.cat([prefix.expand(x.shape[0], x.shape[1], -1, -1), x], dim=2)


def _scattered(weights: Tensor, blocks: QKVBlocks, length: int, kv: KeyValues) -> Tensor:
    """Weights [B, N, h, g, P + s] of blocks -> [B, h, T, P + S]."""
    batch, count, heads, size, _ = weights.shape
    prefix, keys = weights.shape[4] - blocks.kv_idx.shape[4], kv.k.shape[2] - kv.num_prefix_kv
    of_keys = blocks.kv_idx.expand(batch, count, heads, size, -1)
    rows = weights.new_zeros(batch, count, heads, size, keys).scatter_add(4, of_keys, weights[..., prefix:])
    rows = torch.cat([weights[..., :prefix], rows], dim=-1).transpose(1, 2).flatten(2, 3)
    of_queries = blocks.rows.expand(batch, count, heads, size).transpose(1, 2).flatten(2)[..., None]
    spare = weights.new_zeros(batch, heads, length + 1, prefix + keys)  # last row: no query
    sums = spare.scatter_add(2, of_queries.expand_as(rows), rows)
    times = spare[..., :1].scatter_add(2, of_queries, torch.ones_like(rows[..., :1]))
    return (sums / times.clamp(min=1))[:, :, :length]
