"""Modules on the output of a sublayer, before the residual sum."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Branch(nn.Module, ABC):
    """Contract of the slot `branch`: [B, T, D] -> [B, T, D], after the branch's norm.

    Attributes:
        reads_side: whether it is called as `branch(out, side)`, with the inputs of the sublayer.
    """

    reads_side = False

    @abstractmethod
    def forward(self, out: Tensor) -> Tensor: ...
