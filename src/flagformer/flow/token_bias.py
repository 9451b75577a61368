"""Mask and bias of a sublayer whose scores also get a bias that depends on the tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow.attention_bias import AttentionBias
from flagformer.flow.bias_views import DenseBias, PositionSource
from flagformer.flow.flex import FlexBias
from flagformer.flow.varlen import VarLen


class TokenBias(AttentionBias):
    """`plain`, with sums[i] - sums[j] added to the score of query i and key j; prefix keys get none.

    Args:
        plain: mask and position bias of the sublayer.
        sums: [B, H, S], a number of each key, the queries among them last; None while forms are prepared, of
            which those of `plain` are made.

    Attributes:
        has_gradient: whether gradients were enabled when the forms were prepared.
    """

    plain: AttentionBias
    sums: Tensor | None

    def __init__(self, plain: AttentionBias, sums: Tensor | None) -> None:
        self.__dict__.update(plain.__dict__)
        self.plain, self.sums, self.memo = plain, sums, {}
        # reversible layers run first without gradients: the kernel is that of the gradients' run
        self.has_gradient: bool = plain.base.once("has_gradient", torch.is_grad_enabled)

    def of_heads(self, heads: slice) -> TokenBias:
        return TokenBias(self.plain.of_heads(heads), None if self.sums is None else self.sums[:, heads])

    @property
    def is_plain_causal(self) -> bool:
        return False

    @property
    def learned(self) -> bool:
        """Whether the forward computes gradients, also where a sublayer runs without them first."""
        return self.has_gradient or self.plain.learned

    def relative(self) -> None:
        return None

    def varlen(self) -> VarLen | None:
        return None

    def position_source(self) -> PositionSource:
        """That of `plain`, which `gather` and `flex` add to; with gradients if the sums have one."""
        source = self.plain.position_source()
        return source._replace(learned=source.learned or self.learned)

    def _dense(self) -> DenseBias:
        plain = self.plain.dense()
        if self.sums is None:
            return plain
        added = self.sums[:, :, self.offset :, None] - self.sums[:, :, None]
        added = F.pad(added, (self.num_prefix_kv, 0))
        if plain.bias is not None:
            added = added + plain.bias
        elif plain.allowed is not None:
            added = added.masked_fill(~plain.allowed, float("-inf"))
        return plain._replace(bias=added)

    def gather(
        self, q_idx: Tensor, kv_idx: Tensor, only_earlier: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        allowed, added = self.plain.gather(q_idx, kv_idx, only_earlier)
        assert self.sums is not None
        rows, heads = (torch.arange(size, device=q_idx.device) for size in self.sums.shape[:2])
        at = rows.view(-1, 1, 1, 1, 1), heads.view(-1, 1, 1)
        own = self.sums[(*at, q_idx + self.offset)] - self.sums[(*at, kv_idx)]
        return allowed, own if added is None else own + added

    def flex(self) -> FlexBias:
        score_mod, block_mask = self.plain.flex()
        return FlexBias(self._score_mod(score_mod), block_mask)

    def _score_mod(self, inner: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
        sums, prefix, offset = self.sums, self.num_prefix_kv, self.offset
        assert sums is not None

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            score = score if inner is None else inner(score, b, h, q_idx, kv_idx)
            added = sums[b, h, q_idx + offset] - sums[b, h, (kv_idx - prefix).clamp(min=0)]
            return torch.where(kv_idx < prefix, score, score + added)

        return mod
