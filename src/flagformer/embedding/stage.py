"""From embedded tokens to the input of the layers: sum, norm, gradient scale, dropout, projection."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flagformer.embedding.options import TOKEN_TYPE, Step
from flagformer.embedding.tokens import TokenEmbedding
from flagformer.flags import Finding, FlagError
from flagformer.ops.gradient import scale_gradient
from flagformer.ops.identity import identity
from flagformer.ops.traced import readable

Ids = Mapping[str, Tensor]


class EmbeddingStage(nn.Module):
    """[B, T, E] -> [B, P + T, D], in this order; P embeddings of the caller are prepended after the norm.

    Args:
        width: E, the width of embeddings.
        dim: D, the width of the layers; a projection with bias where it differs (ALBERT, arXiv:1909.11942).
        kinds: further embeddings by name, with their number of ids (token types, arXiv:1810.04805).
        norm: norm of the sum.
        share: factor of the gradient of the embeddings (CogView, arXiv:2105.13290, section 2.4).
        dropout: dropout of the sum.
    """

    def __init__(
        self, width: int, dim: int, kinds: Mapping[str, int], norm: Step, share: float, dropout: float
    ) -> None:
        super().__init__()
        if share > 1:
            text = f"`emb_frac_gradient` must be at most 1, but is {share}"
            raise FlagError([Finding("emb_frac_gradient", text)])
        self.width, self.share = width, share
        # a name such as `type` without a suffix would shadow an attribute of the module
        tables = {f"{name}_embed": TokenEmbedding(count, width) for name, count in kinds.items()}
        self.kinds = nn.ModuleDict(tables)
        self.counts = dict(kinds)
        self.norm = norm
        self.dropout: Step = nn.Dropout(dropout) if dropout else identity
        self.project: Step = identity if width == dim else nn.Linear(width, dim)

    def init_neutral(self) -> float:
        """Start with zeros in further embeddings."""
        for table in self.kinds.parameters():
            nn.init.zeros_(table)
        return 1.0

    def forward(
        self, x: Tensor, ids: Ids, sum_embeds: Tensor | None, prepend_embeds: Tensor | None = None
    ) -> Tensor:
        """x [B, T, E] with positions; ids [B, T] for each further embedding; `sum_embeds` [B, T, E] is added,
        `prepend_embeds` [B, P, E] prepended."""
        self._check(x, ids, sum_embeds)
        for name in self.counts:
            x = x + self.kinds[f"{name}_embed"](ids[name])
        x = self.norm(x if sum_embeds is None else x + sum_embeds)
        x = x if prepend_embeds is None else torch.cat([prepend_embeds.to(x.dtype), x], dim=1)
        return self.project(self.dropout(scale_gradient(x, self.share)))

    def ids_of(self, x: Tensor, embed_ids: Ids | None, token_type_ids: Tensor | None) -> Ids:
        """The ids of each further embedding; those of token types are zeros by default."""
        ids = embed_ids or {}
        if TOKEN_TYPE not in self.counts:
            if token_type_ids is not None:
                raise ValueError("`token_type_ids` needs a model with `num_token_types`, but this has none")
            return ids
        if token_type_ids is None:
            return ids if TOKEN_TYPE in ids else {**ids, TOKEN_TYPE: torch.zeros_like(x)}
        if TOKEN_TYPE in ids:
            raise ValueError(
                f"`token_type_ids` and `embed_ids['{TOKEN_TYPE}']` are the same: pass one of them"
            )
        return {**ids, TOKEN_TYPE: token_type_ids}

    def _check(self, x: Tensor, ids: Ids, sum_embeds: Tensor | None) -> None:
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
        if sum_embeds is not None and sum_embeds.shape != x.shape:
            raise ValueError(
                f"`sum_embeds` must have shape {list(x.shape)}, but has {list(sum_embeds.shape)}"
            )

    def _check_range(self, name: str, ids: Tensor) -> None:
        """Check the range of ids, on the CPU only: other devices would be synchronised."""
        if not readable(ids) or not ids.numel():
            return
        low, high, count = int(ids.min()), int(ids.max()), self.counts[name]
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            raise ValueError(f"`embed_ids['{name}']` must hold ids from 0 to {count - 1}, but holds {wrong}")
