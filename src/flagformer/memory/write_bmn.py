"""Slots of unit length that lean towards a bias of their own (Memformer, arXiv:2010.06891, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.memory import Writer
from flagformer.memory.slot_attention import SlotAttention
from flagformer.ops.l2_normalize import l2_normalize


class BMNWriter(Writer):
    """Biased memory normalisation: `m <- (m' + v) / |m' + v|`, and `m_0 = v / |v|`.

    m' is slot attention with a sharp softmax, in which the own value of a slot is the slot itself: one that
    looks at nothing else stays, but for its bias. Layers and projections see slots times the square root of
    D, the size of tokens behind a norm. Biases start at a tenth of a slot's length.
    """

    def __init__(self, dim: int, count: int, heads: int, temperature: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(count, dim))
        self.attention = SlotAttention(dim, heads, temperature, itself=True)
        self.size = dim**0.5
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias, std=0.1 / self.size)

    def seen(self, slots: Tensor) -> Tensor:
        return slots * self.size

    def forward(self, slots: Tensor | None, tokens: Tensor | None, real: Tensor | None) -> Tensor:
        if slots is None or tokens is None:
            return l2_normalize(self.bias)
        read = self.attention(self.seen(slots), tokens, real) / self.size
        return l2_normalize(read + self.bias)
