"""From embedded tokens to what the layers read: sums, norm, share of the gradient, dropout, width."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from flagformer.embedding.tokens import TokenEmbedding
from flagformer.norm.layernorm import LayerNorm
from flagformer.ops.gradient import scale_gradient
from flagformer.ops.identity import identity
from flagformer.ops.traced import readable

Ids = Mapping[str, Tensor]
Step = Callable[[Tensor], Tensor]


class EmbeddingStage(nn.Module):
    """[B, T, E] -> [B, P + T, D], in this order; P embeddings of the caller's own join behind the norm.

    Args:
        width: E, the width of embeddings.
        dim: D, the width of the layers; a projection with bias where it differs (ALBERT, arXiv:1909.11942).
        kinds: further embeddings by name, and how many ids each has (token types, arXiv:1810.04805).
        normed: a LayerNorm of the sum.
        share: of the gradient that reaches the embeddings (CogView, arXiv:2105.13290, section 2.4).
        dropout: of the sum.
    """

    def __init__(
        self, width: int, dim: int, kinds: Mapping[str, int], normed: bool, share: float, dropout: float
    ) -> None:
        super().__init__()
        self.width, self.share = width, share
        # a bare name such as `type` would hide an attribute of the module
        tables = {f"{name}_embed": TokenEmbedding(count, width) for name, count in kinds.items()}
        self.kinds = nn.ModuleDict(tables)
        self.counts = dict(kinds)
        self.norm: Step = LayerNorm(width) if normed else identity
        self.dropout: Step = nn.Dropout(dropout) if dropout else identity
        self.project: Step = identity if width == dim else nn.Linear(width, dim)

    def forward(self, x: Tensor, ids: Ids, more: Tensor | None, front: Tensor | None = None) -> Tensor:
        """x [B, T, E] with positions; ids [B, T] for each further embedding; `more` [B, T, E] is added;
        `front` [B, P, E] stands in front."""
        self._check(x, ids, more)
        for name in self.counts:
            x = x + self.kinds[f"{name}_embed"](ids[name])
        x = self.norm(x if more is None else x + more)
        x = x if front is None else torch.cat([front.to(x.dtype), x], dim=1)
        return self.project(self.dropout(scale_gradient(x, self.share)))

    def _check(self, x: Tensor, ids: Ids, more: Tensor | None) -> None:
        if set(ids) != set(self.counts):
            wanted, given = sorted(self.counts), sorted(ids)
            raise ValueError(
                f"`embed_ids` must hold ids for {wanted or 'nothing'} (`embed_num_tokens`), but holds {given}"
            )
        for name, value in ids.items():
            if tuple(value.shape) != tuple(x.shape[:2]) or value.dtype not in (torch.int64, torch.int32):
                raise ValueError(
                    f"`embed_ids['{name}']` must be integers of shape {list(x.shape[:2])}, one a token, "
                    f"but is {value.dtype} of shape {list(value.shape)}"
                )
            self._check_range(name, value)
        if more is not None and more.shape != x.shape:
            raise ValueError(f"`sum_embeds` must have shape {list(x.shape)}, but has {list(more.shape)}")

    def _check_range(self, name: str, ids: Tensor) -> None:
        """On the CPU only: elsewhere it would wait for the device."""
        if not readable(ids) or not ids.numel():
            return
        low, high, count = int(ids.min()), int(ids.max()), self.counts[name]
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            raise ValueError(f"`embed_ids['{name}']` must hold ids from 0 to {count - 1}, but holds {wrong}")
