"""Routing attention (Routing Transformer, arXiv:2003.05997): tokens attend to keys of their cluster."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from flagformer.attention.cores import Core
from flagformer.attention.cores.block_sparse import (
    MAPS,
    QKVBlocks,
    attend_blocks,
    attend_selected,
    of_heads,
    out_of_blocks,
    rows_at,
    segments_of,
)
from flagformer.attention.cores.cluster_memory import Memories, cluster_memory
from flagformer.attention.cores.kmeans import LOSS, Commitment, Decay, KMeans
from flagformer.attention.cores.ring_buffer import ClusterRingBuffer
from flagformer.attention.kernels import Kernel, key_ranges
from flagformer.attention.kernels.sdpa import SDPA
from flagformer.attention.scores import ScorePipeline
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import AttentionBias, Causal, DecodeState, Dims, KeyValues, OutputCollector, SideInputs
from flagformer.ops.borrow import borrow
from flagformer.ops.cluster_topk import cluster_topk
from flagformer.ops.l2_normalize import l2_normalize
from flagformer.ops.lengths import clamp_to_length
from flagformer.ops.routing import Tokens, chunks_of

NO_MEMORY = (
    "`cluster_num_mem_kv` and `routing_selection='recent'` cannot be combined, because blocks of queries with"
    " recent keys contain several clusters; use `attn_num_mem_kv`, whose memory keys all clusters share"
)


@component(
    "core",
    select="num_clusters",
    paper="arXiv:2003.05997, section 4.2",
    kind="a",
    lacks={
        "same_keys": "each head attends to different keys",
        "token_bias": "the keys of a cluster are selected from the whole row, whatever is between them",
        "all_pairs": "a query has scores with the keys of its cluster alone",
    },
)
class Routing(Core):
    """A query attends to itself and to the most recent keys of its cluster; bidirectional: also to the next.

    The cluster of a token is the centroid nearest to its query or key before rotation. It depends only on its
    own token, so that later tokens do not affect earlier outputs and decoding step by step gives the same
    outputs. Padding has no cluster. Time and memory grow with T * window.

    Departures: in the paper each centroid selects its nearest tokens from the whole sequence, which leaks
    future tokens; its vectors are layer-normed, these have unit length.
    """

    acausal_flag = "routing_selection"
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
                "num_clusters",
                "routing: clusters C of each head, about sqrt(T)",
                ge=1,
                example_with={"window_size": 2},
            ),
        ],
        window: Annotated[
            int,
            Flag("window_size", "keys of the cluster for each query, on each allowed side", ge=1),
        ] = 64,
        decay: Decay = 0.999,
        commitment: Commitment = 1e-4,
        selection: Annotated[
            str,
            Flag(
                "routing_selection",
                "keys of a query: recent keys of its cluster, or the keys that each centroid selects",
                choices=("recent", "topk", "leaky"),
            ),
        ] = "recent",
        memories: Memories = 0,
    ) -> None:
        super().__init__()
        assert count is not None
        if memories and selection == "recent":
            raise FlagError([Finding("cluster_num_mem_kv", NO_MEMORY)])
        self.kernel, self.window, self.bidirectional = kernel, window, not dims.causal
        borrow(self, {"path": path})
        self.path_changes_at = (window,)
        self.has_aux_loss, self.is_acausal = commitment > 0, selection != "recent"
        self.attend = Routing.attend_recent if selection == "recent" else Routing.attend_topk
        self.kmeans = KMeans(dims.heads, count, dims.dim_head, decay, commitment)
        self.memory = cluster_memory(dims, count, memories)

    def init_cache(self, state: DecodeState, device: torch.device) -> ClusterRingBuffer:
        return ClusterRingBuffer(state, len(self.kmeans.means), self.kmeans.count, self.window, device)

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        bias.position_source()

    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        queries, keys = self._clusters(kv, side)
        return self.attend(self, q, kv, queries, keys, bias, side)

    def attend_topk(
        self, q: Tensor, kv: KeyValues, queries: Tensor, keys: Tensor, bias: AttentionBias, side: SideInputs
    ) -> Tensor:
        """Attention among the tokens that each centroid selects from the whole row, of any cluster."""
        assert kv.unrotated_qk is not None
        heads = len(self.kmeans.means)
        groups = [segments_of(layout) for layout in (bias.q, bias.kv)]
        of_queries, of_keys = [
            cluster_topk(
                self.kmeans.cosines(l2_normalize(of_heads(content.detach(), heads))), self.window, group
            )
            for content, group in zip(kv.unrotated_qk, groups)
        ]
        memory, collector = self.memory.of_all(len(groups[1])), side.collector
        return attend_selected(self.kernel, self.path, q, kv, of_queries, of_keys, memory, bias, collector)

    def attend_recent(
        self, q: Tensor, kv: KeyValues, queries: Tensor, keys: Tensor, bias: AttentionBias, side: SideInputs
    ) -> Tensor:
        """Attention to the most recent keys of the cluster of each query."""
        if side.state is not None:
            rings = side.state.core_caches[side.step]
            assert isinstance(rings, ClusterRingBuffer)
            if q.shape[2] == 1:
                found = rings.lookup(queries, side.state.length)
                rings.extend(keys, side.state.length, side.state.write_mask)
                return self._attend_decode(q, kv, found, bias, side.collector)
            keys = rings.extend(keys, side.state.length, side.state.write_mask)
            keys = keys[:, :, bias.kv.start :]
        if self._can_use_sorted(q, kv, bias, side.collector):
            return self._attend_sorted(q, kv, queries, keys, bias)
        return self._attend_blocked(q, kv, queries, keys, bias, side.collector)

    def _can_use_sorted(
        self, q: Tensor, kv: KeyValues, bias: AttentionBias, collector: OutputCollector
    ) -> bool:
        """Whether `key_ranges` is supported, and causality is the only rule."""
        return (
            key_ranges.is_supported(q)
            and not self.bidirectional
            and not kv.num_prefix_kv
            and bias.position_bias is None
            and all(isinstance(rule, Causal) for rule in bias.rules)
            and not collector.is_requested(MAPS)
            and isinstance(self.kernel, SDPA)
            and not (self.training and self.kernel.dropout)
        )

    def _attend_sorted(
        self, q: Tensor, kv: KeyValues, queries: Tensor, keys: Tensor, bias: AttentionBias
    ) -> Tensor:
        """Equal to `_attend_blocked`, without copies of keys that queries share."""
        ranges = key_ranges.sorted_key_ranges(
            Tokens(queries, bias.q.cache_positions()),
            Tokens(keys, bias.kv.cache_positions()),
            bias.kv.end,
            self.window,
            bias.offset,
            kv.shared_qk,
        )
        return key_ranges.attend(q, kv.k, kv.v, ranges, self.path.scale)

    def _clusters(self, kv: KeyValues, side: SideInputs) -> tuple[Tensor, Tensor]:
        """Return the clusters of new queries [B, H, T] and of keys, with XL memories [B, H, M + T].

        In training, new tokens are added to the statistics; tokens of memories were added before.
        """
        assert kv.unrotated_qk is not None
        heads, padding = len(self.kmeans.means), side.layout.valid
        queries, keys = kv.unrotated_qk
        memories = keys.shape[2] - queries.shape[2]
        contents = (queries,) if kv.shared_qk else (queries, keys[:, :, memories:])
        found, learns = [], self.training and side.state is None
        for content in contents:
            clusters, loss = self.kmeans.read(
                of_heads(content, heads), padding, learns and not side.recomputing, learns
            )
            if loss is not None:
                side.collector.add_loss(LOSS, loss / len(contents))
            found.append(clusters)
        if not memories:
            return found[0], found[-1]
        earlier = side.bias.kv.valid
        units = l2_normalize(of_heads(keys[:, :, :memories].detach(), heads))
        clusters, _ = self.kmeans.clusters(units, None if earlier is None else earlier[:, :memories])
        return found[0], torch.cat([clusters, found[-1]], dim=2)

    def _attend_blocked(
        self,
        q: Tensor,
        kv: KeyValues,
        queries: Tensor,
        keys: Tensor,
        bias: AttentionBias,
        collector: OutputCollector,
    ) -> Tensor:
        """Attention of chunks of queries to a shared range of keys of the cluster, and to their own keys."""
        length, total = q.shape[2], keys.shape[2]
        window = clamp_to_length(self.window, total)
        size = clamp_to_length(max(window // 2, 1), length)
        chunks = chunks_of(
            Tokens(queries, bias.q.cache_positions()),
            Tokens(keys, bias.kv.cache_positions()),
            bias.kv.end,
            window,
            size,
            self.bidirectional,
        )
        numbers = chunks.queries.clamp(max=length - 1)  # [B, N, H, g]
        self_mask = torch.eye(size, dtype=torch.bool, device=q.device).expand(*chunks.allowed.shape[:4], -1)
        found = torch.cat([chunks.keys, numbers + bias.offset], dim=-1)  # [B, N, H, s + g]
        blocks = QKVBlocks(
            rows_at(q, numbers),
            rows_at(kv.k[:, :, kv.num_prefix_kv :], found),
            rows_at(kv.v[:, :, kv.num_prefix_kv :], found),
            torch.cat([chunks.allowed, self_mask], dim=-1),
            numbers[..., None],
            found[..., None, :],
            chunks.queries,
            not self.bidirectional,
        )
        out = attend_blocks(self.kernel, self.path, blocks, kv, bias, collector)  # [B, N, H, g, V]
        return out_of_blocks(out, chunks.slots)

    def _attend_decode(
        self, q: Tensor, kv: KeyValues, found: Tensor, bias: AttentionBias, collector: OutputCollector
    ) -> Tensor:
        """Attention of one query to its own key and those at cache positions `found` [B, H, w] (-1: none)."""
        numbers = torch.cat([found - bias.kv.start, torch.full_like(found[..., :1], bias.offset)], dim=-1)
        found = numbers.clamp(min=0)[:, None]  # [B, 1, H, w + 1]
        first = torch.zeros_like(found[..., :1])
        blocks = QKVBlocks(
            q[:, None],
            rows_at(kv.k[:, :, kv.num_prefix_kv :], found),
            rows_at(kv.v[:, :, kv.num_prefix_kv :], found),
            (numbers >= 0)[:, None, :, None],
            first[..., None],
            found[..., None, :],
            first,
            not self.bidirectional,
        )
        return attend_blocks(self.kernel, self.path, blocks, kv, bias, collector)[:, 0]
