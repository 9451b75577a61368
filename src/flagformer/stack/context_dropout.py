"""Dropout of context tokens in cross-attention (Perceiver AR, arXiv:2202.07765)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.ops.drop import keep_some
from flagformer.stack.inputs import check_padding


class ContextDropout(nn.Module, ABC):
    """Contract of the slot `context_dropout`: called once per forward, before the first sublayer."""

    @abstractmethod
    def forward(self, context: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return the mask of the context tokens to read: [B, S] bool, or None for all.

        Args:
            context: [B, S, D_context].
            mask: [B, S] bool, True for valid tokens; None: all are valid.
        """


@component("context_dropout")
class NoContextDropout(ContextDropout):
    """Cross-attention reads all valid tokens of the context."""

    def forward(self, context: Tensor, mask: Tensor | None) -> Tensor | None:
        return mask


@component(
    "context_dropout",
    select="cross_attn_tokens_dropout",
    paper="arXiv:2202.07765",
    kind="c",
)
class RandomContextDropout(ContextDropout):
    """In training, mask a random fraction of each row's context tokens in all cross-attention.

    The mask is drawn once per forward from torch's default generator and reused in recomputation. At least
    one token of each row is kept. Departure: the paper drops tokens from the input; a mask supports rows of
    different lengths.
    """

    def __init__(
        self,
        *,
        rate: Annotated[
            float,
            Flag(
                "cross_attn_tokens_dropout",
                "fraction of context tokens that cross-attention masks in training",
                ge=0,
                lt=1,
            ),
        ],
    ) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, context: Tensor, mask: Tensor | None) -> Tensor | None:
        if not self.training:
            return mask
        shape = context.shape[:2]
        if mask is None:
            valid = torch.ones(shape, dtype=torch.bool, device=context.device)
        else:
            valid = check_padding("context_mask", mask, *shape)
        return keep_some(valid, 1 - self.rate)
