"""Keys and values of an attention, with prefix keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.ops.attend import repeat_kv

# The tensors of tokens that are cached, by name: each [B, heads, T, width].
CacheEntry = dict[str, Tensor]


class KeyValues(NamedTuple):
    """Keys and values of one attention.

    Attributes:
        k: [B, G, P + S, K], after norm and rotation.
        v: [B, G, P + S, V].
        num_prefix_kv: P, keys before the others without a position: always allowed, without a bias.
        unrotated_qk: queries [B, H, T, K] and keys [B, G, T, K] of the new tokens, with memories
            [B, G, M + T, K], before the rotation; with shared QK queries in place of keys. None in
            cross-attention, and for a core whose `reads_heads` is False where they would be expanded.
        shared_qk: keys are the queries, of unit length; a query attends to itself if it has no other key.
        absorbed: k and v are the cached tensor of a projection, and `projection.of_absorbed` gives the
            values of the heads.
    """

    k: Tensor
    v: Tensor
    num_prefix_kv: int = 0
    unrotated_qk: tuple[Tensor, Tensor] | None = None
    shared_qk: bool = False
    absorbed: bool = False

    def prepend(self, k: Tensor, v: Tensor) -> KeyValues:
        """Prepend prefix keys [G, M, K] and values [G, M, V], the same for every row."""
        batch = self.k.shape[0]
        front_k = k.to(self.k.dtype).expand(batch, -1, -1, -1)
        front_v = v.to(self.v.dtype).expand(batch, -1, -1, -1)
        keys = torch.cat([front_k, self.k], dim=2)
        values = torch.cat([front_v, self.v], dim=2)
        return self._replace(k=keys, v=values, num_prefix_kv=self.num_prefix_kv + k.shape[1])

    def of_heads(self, heads: slice, total: int) -> KeyValues:
        """Return the keys and values for some of the `total` query heads."""
        content = self.unrotated_qk
        if content is not None:
            content = content[0][:, heads], _of_heads(content[1], heads, total)
        return self._replace(
            k=_of_heads(self.k, heads, total), v=_of_heads(self.v, heads, total), unrotated_qk=content
        )


def _of_heads(x: Tensor, heads: slice, total: int) -> Tensor:
    """Return the groups of x [B, G, S, K] for these heads, repeated if the slice splits a group."""
    groups = x.shape[1]
    if groups == 1:
        return x
    each = total // groups
    if heads.start % each or heads.stop % each:
        return repeat_kv(x, total)[:, heads]
    return x[:, heads.start // each : heads.stop // each]
