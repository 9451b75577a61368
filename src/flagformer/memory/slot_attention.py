"""Slot attention (Memformer, arXiv:2010.06891, section 3.3): a slot reads itself and a segment."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


class SlotAttention(nn.Module):
    """slots [B, M, D] and tokens [B, T, D] -> [B, M, D]; heads are joined, and not projected.

    Args:
        heads: H, a divisor of D.
        temperature: what scores are divided by, beside the square root of a head's width.
        itself: a slot's own value is the slot; False: a projection of it, as of tokens.
    """

    def __init__(self, dim: int, heads: int, temperature: float = 1.0, itself: bool = False) -> None:
        super().__init__()
        self.heads, self.itself = heads, itself
        self.scale = (dim // heads) ** -0.5 / temperature
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)

    def forward(self, slots: Tensor, tokens: Tensor, real: Tensor | None) -> Tensor:
        q = self._split(self.to_q(slots))
        own_k, own_v = (self._split(part) for part in self.to_kv(slots).chunk(2, dim=-1))
        k, v = (self._split(part) for part in self.to_kv(tokens).chunk(2, dim=-1))
        own_v = self._split(slots) if self.itself else own_v
        own = (q * own_k).sum(dim=-1, keepdim=True)  # [B, H, M, 1]
        others = q @ k.transpose(-1, -2)  # [B, H, M, T]
        if real is not None:
            others = others.masked_fill(~real[:, None, None], float("-inf"))
        weights = (torch.cat([own, others], dim=-1) * self.scale).softmax(dim=-1)
        out = weights[..., :1] * own_v + weights[..., 1:] @ v
        return rearrange(out, "b h m k -> b m (h k)")

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h k) -> b h n k", h=self.heads)
