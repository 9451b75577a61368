"""Slots as the hidden state of a recurrent unit, as in the package memformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flagformer.memory import Writer
from flagformer.memory.slot_attention import SlotAttention
from flagformer.norm.layernorm import LayerNorm


class GRUWriter(Writer):
    """`m <- GRU(attention(m, segment), m)`, then `m <- m + feedforward(norm(m))`.

    Slots start as learned vectors, drawn from a normal distribution, on the scale of tokens.
    """

    def __init__(self, dim: int, count: int, heads: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(count, dim))
        self.attention = SlotAttention(dim, heads)
        self.to_out = nn.Linear(dim, dim)
        self.gru = nn.GRUCell(dim, dim)
        self.feedforward = nn.Sequential(
            LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.slots)

    def as_context(self, slots: Tensor) -> Tensor:
        return slots

    def forward(self, slots: Tensor | None, tokens: Tensor | None, valid: Tensor | None) -> Tensor:
        if slots is None or tokens is None:
            return self.slots.clone()  # FSDP2 frees a gathered parameter after the forward
        read = self.to_out(self.attention(slots, tokens, valid))
        before = slots + torch.zeros_like(read)  # under vmap torch's cell requires both to be batched
        new = self.gru(read.flatten(0, 1), before.flatten(0, 1)).view_as(slots)  # [B * M, D] -> [B, M, D]
        return new + self.feedforward(new)
