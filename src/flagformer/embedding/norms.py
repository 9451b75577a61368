"""The norm of the sum of embeddings, or none."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from flagformer.embedding.options import Step
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.norm import Norm
from flagformer.norm.layernorm import DEFAULT_EPS, LayerNorm
from flagformer.ops.identity import identity

PostEmbNormEps = Annotated[
    float, Flag("post_emb_norm_eps", "epsilon of `post_emb_norm`", ge=1e-12, lt=1, example=0.25)
]
PostEmbNormBias = Annotated[
    bool, Flag("post_emb_norm_bias", "a learned bias in `post_emb_norm`", neutral=True)
]


@component("embedding_norm")
class NoEmbeddingNorm(Norm):
    """No norm of the embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


@component("embedding_norm", select="post_emb_norm", paper="arXiv:1810.04805")
class EmbeddingLayerNorm(LayerNorm):
    """LayerNorm of the embeddings' sum, as in BERT."""

    def __init__(
        self,
        width: int,
        *,
        eps: PostEmbNormEps = DEFAULT_EPS,
        bias: PostEmbNormBias = False,
    ) -> None:
        super().__init__(width, eps=eps, bias=bias)


def embedding_norm(width: int, normed: bool, eps: float, bias: bool) -> Step:
    """The LayerNorm of a model without slots of its own, or none; FlagError for its parameters without it."""
    given = {"post_emb_norm_eps": eps != DEFAULT_EPS, "post_emb_norm_bias": bias}
    findings = [
        Finding(name, f"`{name}` has no effect here, because `post_emb_norm` is not set; set that too")
        for name, is_set in given.items()
        if is_set and not normed
    ]
    if findings:
        raise FlagError(findings)
    return LayerNorm(width, eps=eps, bias=bias) if normed else identity
