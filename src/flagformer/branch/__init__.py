"""What happens to a sublayer's output before it joins the stream."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Branch(nn.Module, ABC):
    """Contract of the slot `branch`: [B, T, D] -> [B, T, D], after the branch's norm."""

    @abstractmethod
    def forward(self, out: Tensor) -> Tensor: ...
