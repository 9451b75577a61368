"""Which tokens of a context cross-attention reads in training (Perceiver AR, arXiv:2202.07765)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.ops.drop import keep_some
from flagformer.stack.inputs import check_padding


class ContextDropout(nn.Module, ABC):
    """Contract of the slot `context_tokens`: called once a forward, before any sublayer runs."""

    @abstractmethod
    def forward(self, context: Tensor, mask: Tensor | None) -> Tensor | None:
        """context [B, S, D_context], mask [B, S] bool or None for all -> the tokens that are read."""


@component("context_dropout")
class NoContextDropout(ContextDropout):
    """Every real one."""

    def forward(self, context: Tensor, mask: Tensor | None) -> Tensor | None:
        return mask


@component(
    "context_dropout",
    select="cross_attn_tokens_dropout",
    paper="arXiv:2202.07765",
    kind="c",
)
class RandomContextDropout(ContextDropout):
    """In training a share of each row's tokens is hidden from all cross-attention, drawn at each forward.

    At least one token of each row stays. The draws come from torch's generator; a recomputation does not draw
    again. Departure: the paper reads fewer tokens; a mask leaves rows of different lengths as they are.
    """

    def __init__(
        self,
        *,
        share: Annotated[
            float,
            Flag(
                "cross_attn_tokens_dropout",
                "share of the context's tokens hidden from cross-attention in training",
                ge=0,
                lt=1,
            ),
        ],
    ) -> None:
        super().__init__()
        self.share = share

    def forward(self, context: Tensor, mask: Tensor | None) -> Tensor | None:
        if not self.training:
            return mask
        shape = context.shape[:2]
        if mask is None:
            real = torch.ones(shape, dtype=torch.bool, device=context.device)
        else:
            real = check_padding("context_mask", mask, *shape)
        return keep_some(real, 1 - self.share)
