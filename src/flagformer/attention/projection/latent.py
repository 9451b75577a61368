"""Multi-head latent attention: keys and values are expanded from one narrow latent (arXiv:2405.04434)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.attention.projection.heads import AttnBias, QKVBias, has_bias
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import CacheEntry, Dims
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.ops.attend import split_heads
from flagformer.ops.linear import plain_weight

EPS = 1e-6  # of the norms of the latents in DeepSeek V2 and V3, whatever that of the model


@component(
    "projection",
    select="attn_kv_rank",
    paper="arXiv:2405.04434, section 2.1",
    lacks={
        "own_keys": "keys and values are expanded from the latent by maps of their own",
        "cached_values": "values are expanded from cached latents",
        "value_rotation": "values are expanded from cached latents, which have no rotation",
        "head_keys": "the rotated part of the keys is cached once for all heads, and the others are expanded"
        " from the cache",
    },
)
class MultiHeadLatent(Projection):
    """Multi-head latent attention: caches a normed latent and the rotary part of the keys, for all heads.

    The first R dims of each key are one vector, which all heads share and the rotation turns; the other
    K - R dims and the values are linear maps of the latent, for each head its own. A token takes
    `attn_kv_rank` + R cached values in each layer. A few new tokens read a long cache without expanding it
    (section 2.1.2): queries are multiplied by the map of the keys, outputs by that of the values.
    """

    def __init__(
        self,
        dims: Dims,
        cross: bool,
        shared: bool,
        *,
        rank: Annotated[
            int | None,
            Flag(
                "attn_kv_rank", "width of the latent that keys and values are expanded from", ge=1, example=5
            ),
        ],
        q_rank: Annotated[
            int | None,
            Flag("attn_q_rank", "width of the latent of the queries; None: no latent", ge=1, example=6),
        ] = None,
        rope_dim: Annotated[
            int | None,
            Flag(
                "attn_rope_dim",
                "first dims R of a key that all heads share; None: the dims that the rotation turns",
                ge=0,
                example=2,
            ),
        ] = None,
        bias: AttnBias = False,
        qkv_bias: QKVBias = None,
    ) -> None:
        assert rank is not None
        super().__init__()
        self.heads = self.groups = dims.heads
        self.rope = _rope_width(rope_dim, dims)
        self.rank, self.rest, self.values = rank, dims.dim_head - self.rope, dims.dim_value
        self.entry_widths = {"latent": self.rope + rank}
        self.rotary_part, self.rotary_dims = "latent", self.rope
        biased, queries = has_bias(bias, qkv_bias), dims.heads * dims.dim_head
        if q_rank is not None:
            self.to_q_latent = nn.Linear(dims.dim, q_rank, bias=biased)
            self.q_norm = RMSNorm(q_rank, eps=EPS)
        self.has_q_latent = q_rank is not None
        self.to_q = nn.Linear(dims.dim if q_rank is None else q_rank, queries, bias=False)
        source = (dims.dim_context or dims.dim) if cross else dims.dim
        self.to_latent = nn.Linear(source, rank + self.rope, bias=biased)
        self.latent_norm = RMSNorm(rank, eps=EPS)
        widths = [self.rest, self.values]
        self.to_kv = nn.Linear(rank, dims.heads * sum(widths), bias=False)
        self.of_q = split_heads([dims.heads], [dims.dim_head])
        self.of_kv = split_heads([dims.heads, dims.heads], widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, entry = self.cache_entry(x)
        return q, *self.expand(entry)

    def queries(self, x: Tensor) -> Tensor:
        return self.of_q(self.to_q(self.q_norm(self.to_q_latent(x)) if self.has_q_latent else x))[0]

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.expand(self.context_entry(context))

    def cache_entry(self, x: Tensor) -> tuple[Tensor, CacheEntry]:
        return self.queries(x), self.context_entry(x)

    def context_entry(self, context: Tensor) -> CacheEntry:
        """context [B, S, D] -> [B, 1, S, R + rank]: the rotary part of the keys, and the normed latent."""
        latent, rope = self.to_latent(context)[:, None].split_with_sizes([self.rank, self.rope], dim=3)
        return {"latent": torch.cat([rope, self.latent_norm(latent).to(rope.dtype)], dim=3)}

    def expand(self, entry: CacheEntry) -> tuple[Tensor, Tensor]:
        rope, latent = entry["latent"].split_with_sizes([self.rope, self.rank], dim=3)
        k, v = self.of_kv(self.to_kv(latent[:, 0]))
        if not self.rope:
            return k, v
        return torch.cat([rope.expand(-1, self.heads, -1, -1), k], dim=3), v

    def absorb(self, q: Tensor, entry: CacheEntry) -> tuple[Tensor, Tensor] | None:
        cached = entry["latent"]
        if not self._absorbing_pays(q.shape[2], cached.shape[2]) or plain_weight(self.to_kv) is None:
            return None
        rope, rest = q.split_with_sizes([self.rope, self.rest], dim=3)
        maps, _ = self._maps()
        return torch.cat([rope, torch.einsum("bhtn,hnr->bhtr", rest, maps)], dim=3), cached

    def of_absorbed(self, out: Tensor) -> Tensor:
        _, maps = self._maps()
        return torch.einsum("bhtr,hvr->bhtv", out[..., self.rope :], maps)

    def _absorbing_pays(self, tokens: int, keys: int) -> bool:
        """Whether attention over the latents takes fewer products than expanding them, for each head:
        rank * (K - R + V) for each token, in place of each key, but 2 * (R + rank) for a pair, not K + V."""
        maps = self.rank * (self.rest + self.values)
        pair = 2 * (self.rope + self.rank) - (self.rope + self.rest + self.values)
        return tokens * keys * pair < (keys - tokens) * maps

    def _maps(self) -> tuple[Tensor, Tensor]:
        """The maps of the latent to the keys [H, K - R, rank] and to the values [H, V, rank]."""
        weight = plain_weight(self.to_kv)
        assert weight is not None
        k, v = weight.split_with_sizes([self.heads * self.rest, self.heads * self.values])
        return k.unflatten(0, (self.heads, self.rest)), v.unflatten(0, (self.heads, self.values))


def _rope_width(rope_dim: int | None, dims: Dims) -> int:
    """R, at least the dims that the rotation turns and at most those of a head."""
    width = dims.rotary_width if rope_dim is None else rope_dim
    if width > dims.dim_head:
        text = f"`attn_rope_dim` must be at most `attn_dim_head` = {dims.dim_head}, but is {width}"
        raise FlagError([Finding("attn_rope_dim", text)])
    if width < dims.rotary_width:
        text = f"`attn_rope_dim` = {width} and `rotary_emb_dim` = {dims.rotary_width} cannot be combined,"
        text = f"{text} because all heads share the rotated dims; raise the first or lower the second"
        raise FlagError([Finding("attn_rope_dim", text)])
    return width
