"""From the last layer to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

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


class LayerMix(nn.Module, ABC):
    """Contract of the slot `layer_mix`, built as `(dim, steps)`: combines the hidden states of the layers.

    The stack records hidden states only for a component in this slot. `steps` is their number: one for each
    sublayer that runs, and one for each group of parallel ones.
    """

    @abstractmethod
    def forward(self, x: Tensor, hiddens: Sequence[Tensor]) -> Tensor:
        """The output of the layers x [B, T, D], and the residual stream before each step, each [B, T, D] ->
        the input of the head [B, T, D]. A token must read its own hidden states alone."""
