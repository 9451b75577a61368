"""Slot attention (Memformer, arXiv:2010.06891, section 3.3): each slot attends to itself and to a segment."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


class SlotAttention(nn.Module):
    """slots [B, M, D] and tokens [B, T, D] -> [B, M, D]; heads are joined, and not projected.

    Args:
        heads: H, a divisor of D.
        temperature: divides the scores, in addition to the square root of a head's width.
        identity_value: the value of a slot for itself is the slot; False: its projection, as for tokens.
    """

    def __init__(self, dim: int, heads: int, temperature: float = 1.0, identity_value: bool = False) -> None:
        super().__init__()
        self.heads, self.identity_value = heads, identity_value
        self.scale = (dim // heads) ** -0.5 / temperature
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)

    def forward(self, slots: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        q = self._split(self.to_q(slots))
        self_k, self_v = (self._split(kv) for kv in self.to_kv(slots).chunk(2, dim=-1))
        k, v = (self._split(kv) for kv in self.to_kv(tokens).chunk(2, dim=-1))
        self_v = self._split(slots) if self.identity_value else self_v
        self_scores = (q * self_k).sum(dim=-1, keepdim=True)  # [B, H, M, 1]
        scores = q @ k.transpose(-1, -2)  # [B, H, M, T]
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None], float("-inf"))
        probs = (torch.cat([self_scores, scores], dim=-1) * self.scale).softmax(dim=-1)
        out = probs[..., :1] * self_v + probs[..., 1:] @ v
        return rearrange(out, "b h m k -> b m (h k)")

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h k) -> b h n k", h=self.heads)
