"""Token embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """ids [B, T] -> [B, T, E]; starts as a normal distribution of standard deviation `std`.

    Args:
        std: initial standard deviation; None: E ** -0.5.
    """

    def __init__(self, num_tokens: int, width: int, std: float | None = None) -> None:
        self.std = width**-0.5 if std is None else std  # torch's constructor initialises
        super().__init__(num_tokens, width)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


def vectors_of(embedding: nn.Module, num_tokens: int, device: torch.device) -> Tensor:
    """[V, E], the output of `embedding` for the ids 0 ... V - 1.

    For an `nn.Embedding` without hooks this is its table, without the copy that a call would make.
    """
    lookup = getattr(embedding.forward, "__func__", None) is nn.Embedding.forward
    if lookup and not (embedding._forward_hooks or embedding._forward_pre_hooks):
        table: Tensor = embedding.weight  # type: ignore[assignment]
        return table
    vectors: Tensor = embedding(torch.arange(num_tokens, device=device))
    return vectors
