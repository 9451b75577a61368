"""A projection of its own, the token embedding read backwards (arXiv:1608.05859), or none."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.head import Head, Vectors
from flagformer.head import transform as masked
from flagformer.norm.layernorm import DEFAULT_EPS
from flagformer.ops.identity import identity

EMB_DIM = Flag("emb_dim", "width E of embeddings, projected to `dim` (1909.11942); None: `dim`", ge=1)
Bias = Annotated[bool, Flag("logits_bias", "a learned bias for each logit", neutral=True)]
Scale = Annotated[float, Flag("logits_scale", "factor of logits, before the soft cap", ge=1e-6, example=0.5)]
SoftCap = Annotated[
    float | None,
    Flag("logits_softcap", "logits become cap * tanh(logits / cap) (2408.00118)", ge=1e-3, example=0.7),
]


class _Logits(Head):
    """Base of both heads: the factor and the soft cap of logits."""

    def __init__(self, scale: float, cap: float | None) -> None:
        super().__init__()
        self.factor, self.cap = float(scale), None if cap is None else float(cap)

    def finish(self, logits: Tensor) -> Tensor:
        """[B, T, V] -> [B, T, V]."""
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap


@component("head")
class LinearHead(_Logits):
    """Logits by a projection of its own, without bias by default."""

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        *,
        logits: Annotated[
            int | None, Flag("logits_dim", "logits of a token; None: `num_tokens`", ge=1)
        ] = None,
        bias: Bias = False,
        scale: Scale = 1.0,
        cap: SoftCap = None,
        transform: masked.Activation = None,
        transform_bias: masked.Bias = True,
        transform_eps: masked.Eps = DEFAULT_EPS,
    ) -> None:
        super().__init__(scale, cap)
        self.logits_dim = logits
        self.transform = masked.head_transform(dim, dim, transform, transform_bias, transform_eps)
        self.project = nn.Linear(dim, logits or num_tokens, bias=bias)

    def inputs(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the inputs of the projection."""
        transformed: Tensor = self.transform(x)
        return transformed

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        return self.finish(self.project(self.inputs(x)))


@component("head", select="tie_embedding", paper="arXiv:1608.05859")
class TiedHead(_Logits):
    """Logits are products with the token embedding, divided by the square root of its width by default.

    The embedding is asked for its vectors at each call: what changes its output, an adapter or a hook,
    changes logits too, as merged weights would. Under `emb_dim` a projection to that width comes first, that
    of `head_transform` where there is one, as in ALBERT (arXiv:1909.11942).
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        *,
        width: Annotated[int | None, EMB_DIM] = None,
        bias: Bias = False,
        tied_scale: Annotated[
            float | None,
            Flag(
                "tie_embedding_scale",
                "factor of the products with the embedding; None: E ** -0.5",
                ge=1e-6,
                example=1.0,
            ),
        ] = None,
        scale: Scale = 1.0,
        cap: SoftCap = None,
        transform: masked.Activation = None,
        transform_bias: masked.Bias = True,
        transform_eps: masked.Eps = DEFAULT_EPS,
    ) -> None:
        super().__init__(scale, cap)
        self.transform = masked.head_transform(dim, width or dim, transform, transform_bias, transform_eps)
        narrower = width is not None and width != dim and transform is None
        self.narrow = nn.Linear(dim, width, bias=False) if width is not None and narrower else identity
        self.scale = (width or dim) ** -0.5 if tied_scale is None else float(tied_scale)
        self.add_bias = LogitBias(num_tokens) if bias else identity

    def inputs(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the factors [B, T, E] of the products with the embedding."""
        scaled: Tensor = self.narrow(self.transform(x)) * self.scale
        return scaled

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        return self.finish(self.add_bias(F.linear(self.inputs(x), vectors(x.device))))


class LogitBias(nn.Module):
    """Add a learned number to each logit, initially zero: [B, T, V] -> [B, T, V]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(count))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.bias


@component("head", select="return_only_embed")
class NoHead(Head):
    """No logits: the model gives the embeddings [B, T, D] of its last layer (an encoder's, for a decoder)."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        return x
