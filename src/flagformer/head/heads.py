"""A projection of its own, the token embedding read backwards (arXiv:1608.05859), or none."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.embedding.tokens import TokenEmbedding
from flagformer.flags import component
from flagformer.head import Head


@component("head")
class LinearHead(Head):
    """Logits by a projection of its own, without bias."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, num_tokens, bias=False)

    def forward(self, x: Tensor, embedding: TokenEmbedding) -> Tensor:
        return self.project(x)


@component("head", select="tie_embedding", paper="arXiv:1608.05859")
class TiedHead(Head):
    """Logits are products with the token embedding, divided by sqrt(D).

    It holds no weight: it is handed the embedding at each call, so that a copy of a model reads its own.
    """

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.scale = dim**-0.5

    def forward(self, x: Tensor, embedding: TokenEmbedding) -> Tensor:
        return F.linear(x * self.scale, embedding.weight)


@component("head", select="return_only_embed")
class NoHead(Head):
    """No logits: the model gives the embeddings [B, T, D] of its last layer (an encoder's, for a decoder)."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, embedding: TokenEmbedding) -> Tensor:
        return x
