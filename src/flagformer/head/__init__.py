"""From the last layer to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

Vectors = Callable[[torch.device], Tensor]


class Head(nn.Module, ABC):
    """Contract of the slot `head`, built as `(dim, num_tokens)`.

    Attributes:
        logits_dim: number of logits of a token; None: `num_tokens`.
    """

    logits_dim: int | None = None

    @abstractmethod
    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        """x [B, T, D] -> logits [B, T, V]; `vectors` gives the token embedding's [V, E] on a device."""
