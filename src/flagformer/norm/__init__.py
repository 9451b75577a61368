"""Norms: `norm(x) -> x` over the last dimension, built with the size of that dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Norm(nn.Module, ABC):
    """Contract of the slot `norm`: [..., D] -> [..., D], no statistics across tokens.

    Attributes:
        reads_side: whether `forward` also takes the inputs of the sublayer, as `(x, side)`.
    """

    reads_side: bool = False

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...
