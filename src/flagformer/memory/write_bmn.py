"""Slots of unit length with a learned bias each (Memformer, arXiv:2010.06891, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.memory import Writer
from flagformer.memory.slot_attention import SlotAttention
from flagformer.ops.l2_normalize import l2_normalize


class BMNWriter(Writer):
    """Biased memory normalisation: `m <- (m' + v) / |m' + v|`, and `m_0 = v / |v|`.

    m' is slot attention with a low softmax temperature, in which the value of a slot for itself is the slot:
    one that attends only to itself changes by its bias only. Layers and projections read slots multiplied by
    the square root of D, the length of a token after a norm. Biases start at a tenth of a slot's length.
    """

    def __init__(self, dim: int, count: int, heads: int, temperature: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(count, dim))
        self.attention = SlotAttention(dim, heads, temperature, identity_value=True)
        self.size = dim**0.5
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias, std=0.1 / self.size)

    def as_context(self, slots: Tensor) -> Tensor:
        return slots * self.size

    def forward(self, slots: Tensor | None, tokens: Tensor | None, valid: Tensor | None) -> Tensor:
        if slots is None or tokens is None:
            return l2_normalize(self.bias)
        read = self.attention(self.as_context(slots), tokens, valid) / self.size
        return l2_normalize(read + self.bias)
