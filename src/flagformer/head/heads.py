"""A projection of its own, the token embedding read backwards (arXiv:1608.05859), or none."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.head import Head, Vectors
from flagformer.ops.identity import identity

EMB_DIM = Flag("emb_dim", "width E of embeddings, projected to `dim` (1909.11942); None: `dim`", ge=1)


@component("head")
class LinearHead(Head):
    """Logits by a projection of its own, without bias."""

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        *,
        logits: Annotated[
            int | None, Flag("logits_dim", "logits of a token; None: `num_tokens`", ge=1)
        ] = None,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(dim, logits or num_tokens, bias=False)

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        return self.project(x)


@component("head", select="tie_embedding", paper="arXiv:1608.05859")
class TiedHead(Head):
    """Logits are products with the token embedding, divided by the square root of its width.

    The embedding is asked for its vectors at each call: what changes its output, an adapter or a hook,
    changes logits too, as merged weights would. Under `emb_dim` a projection to that width comes first, as in
    ALBERT (arXiv:1909.11942).
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        *,
        width: Annotated[int | None, EMB_DIM] = None,
    ) -> None:
        super().__init__()
        narrower = width is not None and width != dim
        self.narrow = nn.Linear(dim, width, bias=False) if width is not None and narrower else identity
        self.scale = (width or dim) ** -0.5

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        return F.linear(self.narrow(x) * self.scale, vectors(x.device))


@component("head", select="return_only_embed")
class NoHead(Head):
    """No logits: the model gives the embeddings [B, T, D] of its last layer (an encoder's, for a decoder)."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        return x
