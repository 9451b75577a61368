"""Disentangled attention (DeBERTa, arXiv:2006.03654): scores of contents with relative positions."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.embedding.tokens import TokenEmbedding
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import AttentionBias, Dims, Layout
from flagformer.norm.layernorm import DEFAULT_EPS, LayerNorm
from flagformer.ops.attend import repeat_kv
from flagformer.ops.borrow import borrow
from flagformer.ops.buckets import log_bucket
from flagformer.ops.home import home_of
from flagformer.ops.identity import identity
from flagformer.position import PositionBias
from flagformer.score import Score

NAME, PAPER = "disentangled_attn", "arXiv:2006.03654, section 3.1"
TERMS = ("both", "c2p", "p2c")


@component("position_bias", select=NAME, paper=PAPER, needs={"scores", "all_pairs", "own_keys"})
class Disentangled(PositionBias):
    """A learned vector for each bucket of signed distances, shared by all layers, whose scores read it.

    The score of query i and key j is scale * (q_i . k_j + q_i . kr_d + k_j . qr_d), d the bucket of i - j.
    The projections of contents give qr and kr of the vectors, as in DeBERTa v2 and v3; the paper has others.
    Its scale of three terms is (3 K) ** -0.5 (`attn_scale`). Keys without a position (`attn_num_mem_kv`) have
    the first term alone.

    The buckets are those of DeBERTa v2: distances below half of the span have a bucket each, the others grow
    in width up to the largest distance. The table is [N, D], N = 2 * span, or span in a causal model, which
    has no negative distances; it starts as a normal distribution of standard deviation D ** -0.5.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        span: Annotated[
            int, Flag("disentangled_attn_span", "buckets of each direction", ge=2, lt=2**20, example=4)
        ] = 256,
        max_distance: Annotated[
            int,
            Flag(
                "disentangled_attn_max_distance",
                "distances from here on share the last bucket; 0: each below the span has its own",
                ge=0,
                example=24,
                example_with={"disentangled_attn_span": 8},
            ),
        ] = 512,
        terms: Annotated[
            str,
            Flag(
                "disentangled_attn_terms",
                "content to position (c2p), position to content (p2c), or both",
                choices=TERMS,
                example="p2c",
            ),
        ] = "both",
        norm: Annotated[bool, Flag("disentangled_attn_norm", "LayerNorm of the relative embeddings")] = True,
        eps: Annotated[
            float,
            Flag("disentangled_attn_norm_eps", "epsilon of that norm", ge=1e-12, lt=1, example=0.25),
        ] = DEFAULT_EPS,
    ) -> None:
        super().__init__()
        if 0 < max_distance <= span // 2 + 1:
            text = f"`disentangled_attn_max_distance` must exceed {span // 2 + 1}, half of the span and 1"
            raise FlagError([Finding("disentangled_attn_max_distance", f"{text}, but is {max_distance}")])
        if not norm and eps != DEFAULT_EPS:
            text = "`disentangled_attn_norm_eps` has no effect here, because `disentangled_attn_norm` is"
            raise FlagError([Finding("disentangled_attn_norm_eps", f"{text} False; leave one of them out")])
        self.span, self.max_distance, self.terms = span, max_distance, terms
        self.first = 0 if dims.causal else -span  # the bucket of the first row
        self.rows = span - self.first
        self.table = TokenEmbedding(self.rows, dims.dim)
        self.norm = LayerNorm(dims.dim, eps=eps, bias=True) if norm else identity

    def forward(self) -> Tensor:
        """[N, D]."""
        rows = self.table(torch.arange(self.rows, device=home_of(self)[0]))
        normed: Tensor = self.norm(rows)
        return normed

    def embedding(self) -> Tensor:
        vectors: Tensor = self()
        return vectors

    def score_mods(self, projection: nn.Module, qk_norm: nn.Module, scale: float) -> tuple[Score, ...]:
        return (DisentangledScores(self, projection, qk_norm, scale),)

    def index(self, distance: Tensor) -> Tensor:
        """The row of each distance q - k, any shape, long."""
        if self.max_distance:
            distance = log_bucket(distance, self.span, self.max_distance)
        return (distance - self.first).clamp(0, self.rows - 1)

    def between(self, queries: Layout, keys: Layout) -> None:
        return None

    def decode_table(self, length: int, device: torch.device) -> None:
        return None


class DisentangledScores(Score):
    """Adds the scores of contents with relative positions, [B, H, T, P + S] -> the same shape.

    Args:
        relative: the relative embeddings.
        projection, qk_norm: of the attention, which make queries and keys of them.
        scale: of the scores.
    """

    relative: Disentangled
    projection: Any
    qk_norm: Any

    def __init__(
        self, relative: Disentangled, projection: nn.Module, qk_norm: nn.Module, scale: float
    ) -> None:
        super().__init__()
        borrow(self, {"relative": relative, "projection": projection, "qk_norm": qk_norm})
        self.scale, self.c2p, self.p2c = scale, relative.terms != "p2c", relative.terms != "c2p"

    def forward(self, scores: Tensor, q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
        vectors = bias.relative_embedding()
        assert vectors is not None
        queries, keys, _ = self.projection(vectors[None])  # [1, H, N, K], [1, G, N, K]
        distance = bias.q.positions[:, :, None] - bias.kv.positions[:, None]
        index = self.relative.index(distance)[:, None]  # [1 or B, 1, T, S]
        heads, prefix = q.shape[1], bias.num_prefix_kv
        index = index.expand(*scores.shape[:3], scores.shape[3] - prefix)
        added = scores.new_zeros(())
        if self.c2p:
            of_keys = q @ repeat_kv(self.qk_norm.keys(keys), heads).mT  # [B, H, T, N]
            added = added + of_keys.gather(3, index)
        if self.p2c:
            of_queries = repeat_kv(k[:, :, prefix:], heads) @ self.qk_norm.queries(queries).mT  # [B, H, S, N]
            added = added + of_queries.gather(3, index.mT).mT
        return scores + F.pad(added * self.scale, (prefix, 0))
