"""Keys and values on their way to a kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# How many seats stand in front, and how many tokens a query sees (None: all): what pairs are found by.
Sight = tuple[int, int | None]


class KeyValues(NamedTuple):
    """Keys and values of one attention.

    Attributes:
        k: [B, G, seats + S, K], already normed and turned.
        v: [B, G, seats + S, V].
        seats: keys in front without a position: every query sees them, no bias reaches them.
        window: how many of the last tokens a query sees, itself included; None: all.
    """

    k: Tensor
    v: Tensor
    seats: int = 0
    window: int | None = None

    @property
    def sight(self) -> Sight:
        """What the pairs of these keys are found by."""
        return self.seats, self.window

    def prepend(self, k: Tensor, v: Tensor) -> KeyValues:
        """Seats [G, M, K] and [G, M, V] in front, the same for every row."""
        batch = self.k.shape[0]
        front_k = k.to(self.k.dtype).expand(batch, -1, -1, -1)
        front_v = v.to(self.v.dtype).expand(batch, -1, -1, -1)
        keys = torch.cat([front_k, self.k], dim=2)
        values = torch.cat([front_v, self.v], dim=2)
        return KeyValues(keys, values, self.seats + k.shape[1], self.window)
