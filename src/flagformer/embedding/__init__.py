"""What turns inputs into vectors, and the vectors that stand beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import InsertionPattern


class Memory(nn.Module, ABC):
    """Contract of the slot `memory`, built as `(dim)`: vectors that are woven between those of tokens.

    Attributes:
        pattern: where they stand.
    """

    pattern: InsertionPattern

    @abstractmethod
    def forward(self, like: Tensor) -> Tensor:
        """[M, D], of the device and dtype of the tokens' vectors."""
