"""A linear layer that starts at zero."""

from __future__ import annotations

from torch import nn


class ZeroLinear(nn.Linear):
    """`nn.Linear` that starts at zero and draws no random numbers."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
