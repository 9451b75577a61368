"""Routed cross-attention: queries attend to the context tokens of their cluster (arXiv:2003.05997)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from flagformer.attention.cores import Core
from flagformer.attention.cores.block_sparse import (
    QKVBlocks,
    attend_blocks,
    attend_selected,
    of_heads,
    out_of_blocks,
    rows_at,
    segments_of,
)
from flagformer.attention.cores.cluster_memory import Memories, cluster_memory
from flagformer.attention.cores.context_selection import ContextSelectionCache
from flagformer.attention.cores.kmeans import LOSS, Commitment, Decay, KMeans
from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.flags import Flag, component
from flagformer.flow import AttentionBias, DecodeState, Dims, KeyValues, Layout, OutputCollector, SideInputs
from flagformer.ops.borrow import borrow
from flagformer.ops.cluster_topk import ClusterTopK, cluster_topk
from flagformer.ops.l2_normalize import l2_normalize
from flagformer.ops.lengths import clamp_to_length
from flagformer.ops.routing import members_of


@component(
    "core",
    select="context_num_clusters",
    paper="arXiv:2003.05997, section 4.2",
    kind="c",
    lacks={"same_keys": "each head attends to different keys"},
)
class RoutedContext(Core):
    """A query attends to the `context_window_size` context tokens nearest to its centroid.

    The cluster of a query depends only on its own token, and the whole context is given, so that later tokens
    do not affect earlier outputs and decoding step by step gives the same outputs.

    Departure: in the paper centroids also select queries from the whole row, which leaks future tokens;
    `"topk"` and `"leaky"` do so.
    """

    acausal_flag = "context_selection"
    path: ScorePipeline  # owned by the kernel

    def __init__(
        self,
        kernel: Kernel,
        path: ScorePipeline,
        cross: bool,
        dims: Dims,
        *,
        count: Annotated[
            int | None,
            Flag(
                "context_num_clusters",
                "routing: clusters C of each head of cross-attention",
                ge=1,
                example_with={"context_window_size": 2},
            ),
        ],
        window: Annotated[
            int, Flag("context_window_size", "context tokens that each centroid selects", ge=1)
        ] = 64,
        decay: Decay = 0.999,
        commitment: Commitment = 1e-4,
        selection: Annotated[
            str,
            Flag(
                "context_selection",
                "centroids select context tokens for the queries of their cluster, or select queries too",
                choices=("nearest", "topk", "leaky"),
            ),
        ] = "nearest",
        memories: Memories = 0,
    ) -> None:
        super().__init__()
        assert count is not None
        self.kernel, self.window = kernel, window
        self.path_changes_at = (window,)
        borrow(self, {"path": path})
        self.has_aux_loss, self.is_acausal = commitment > 0, selection != "nearest"
        self.attend = RoutedContext.attend_nearest if selection == "nearest" else RoutedContext.attend_topk
        self.kmeans = KMeans(dims.heads, count, dims.dim_head, decay, commitment)
        self.memory = cluster_memory(dims, count, memories)

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        """Do nothing: cross-attention has no position bias, and its only mask is padding."""

    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        keys = kv.k[:, :, kv.num_prefix_kv :]
        padding = bias.kv.valid
        of_queries, of_keys = of_heads(q, q.shape[1]), of_heads(keys, q.shape[1])
        clusters = self._learn(of_queries, of_keys, padding, side)
        found = self._found(of_keys, padding, side)
        # no padding mask: centroids select valid tokens only
        unmasked = AttentionBias((), None, bias.q, Layout.arange(keys.shape[2], keys.device))
        return self.attend(self, q, kv, clusters, found, unmasked, side.collector)

    def init_cache(self, state: DecodeState, device: torch.device) -> ContextSelectionCache:
        return ContextSelectionCache()

    def _found(self, keys: Tensor, padding: Tensor | None, side: SideInputs) -> ClusterTopK:
        """Return the context tokens that each centroid selects; computed once per decoding session."""
        if side.state is None:
            return self._select(keys, padding)
        cache = side.state.core_caches[side.step]
        assert isinstance(cache, ContextSelectionCache)
        if cache.selections is None:
            cache.selections = self._select(keys, padding)
        return cache.selections

    def _select(self, keys: Tensor, padding: Tensor | None) -> ClusterTopK:
        return cluster_topk(self.kmeans.cosines(l2_normalize(keys.detach())), self.window, [padding])

    def _learn(self, queries: Tensor, keys: Tensor, padding: Tensor | None, side: SideInputs) -> Tensor:
        """Return the clusters [B, H, T] of queries; in training, add both inputs to the statistics."""
        learns = self.training and side.state is None
        counts = learns and not side.recomputing
        clusters, loss = self.kmeans.read(queries, side.layout.valid, counts, learns)
        if learns:
            _, of_keys = self.kmeans.read(keys, padding, counts, learns)
            if loss is not None and of_keys is not None:
                sizes = queries.shape[2], keys.shape[2]
                total = loss * (sizes[0] / sum(sizes)) + of_keys * (sizes[1] / sum(sizes))
                side.collector.add_loss(LOSS, total)
        return clusters

    def attend_nearest(
        self,
        q: Tensor,
        kv: KeyValues,
        clusters: Tensor,
        found: ClusterTopK,
        bias: AttentionBias,
        collector: OutputCollector,
    ) -> Tensor:
        """Attention of blocks of queries of one cluster to the keys that its centroid selects."""
        length = q.shape[2]
        size = clamp_to_length(self.window, length)
        members = members_of(clusters, self.kmeans.count, size)
        of_blocks = members.clusters.clamp(max=self.kmeans.count - 1)  # [B, N, H]; any cluster for padding
        keys, valid = (
            part.gather(1, of_blocks[..., None].expand(-1, -1, -1, part.shape[3])) for part in found
        )
        numbers = members.numbers.clamp(max=length - 1)  # [B, N, H, g]
        blocks = QKVBlocks(
            rows_at(q, numbers),
            rows_at(kv.k[:, :, kv.num_prefix_kv :], keys),
            rows_at(kv.v[:, :, kv.num_prefix_kv :], keys),
            valid[..., None, :].expand(*numbers.shape, -1),
            numbers[..., None],
            keys[..., None, :],
            members.numbers,
            only_earlier=False,
            may_mask_all=True,
            prefix_kv=self.memory.of_blocks(of_blocks),
        )
        out = attend_blocks(self.kernel, self.path, blocks, kv, bias, collector)
        return out_of_blocks(out, members.slots)

    def attend_topk(
        self,
        q: Tensor,
        kv: KeyValues,
        clusters: Tensor,
        found: ClusterTopK,
        bias: AttentionBias,
        collector: OutputCollector,
    ) -> Tensor:
        """Attention of the queries to the context tokens that the same centroid selects."""
        cosines = self.kmeans.cosines(l2_normalize(of_heads(q.detach(), q.shape[1])))
        groups = segments_of(bias.q)
        chosen = cluster_topk(cosines, self.window, groups)
        found = ClusterTopK(*(part.repeat(1, len(groups), 1, 1) for part in found))
        memory = self.memory.of_all(len(groups))
        return attend_selected(self.kernel, self.path, q, kv, chosen, found, memory, bias, collector)
