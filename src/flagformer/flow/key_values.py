"""Keys and values on their way to a kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KeyValues(NamedTuple):
    """Keys and values of one attention.

    Attributes:
        k: [B, G, seats + S, K], already normed and turned.
        v: [B, G, seats + S, V].
        seats: keys in front without a position: every query sees them, no bias reaches them.
    """

    k: Tensor
    v: Tensor
    seats: int = 0

    def prepend(self, k: Tensor, v: Tensor) -> KeyValues:
        """Seats [G, M, K] and [G, M, V] in front, the same for every row."""
        batch = self.k.shape[0]
        front_k = k.to(self.k.dtype).expand(batch, -1, -1, -1)
        front_v = v.to(self.v.dtype).expand(batch, -1, -1, -1)
        keys = torch.cat([front_k, self.k], dim=2)
        return KeyValues(keys, torch.cat([front_v, self.v], dim=2), self.seats + k.shape[1])
