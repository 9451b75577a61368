"""The norm of the sum of embeddings, or none."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from flagformer.embedding.options import Step, step_of
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.norm import Norm
from flagformer.norm.layernorm import DEFAULT_EPS, LayerNorm

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


def build_embedding_norm(choice: Any, width: int) -> Step:
    """The norm of a component of the slot, as a function of x; FlagError for one that reads other inputs."""
    norm = step_of(choice.build(width), NoEmbeddingNorm)
    if getattr(norm, "reads_side", False):
        text = "must be a norm of x alone, because embeddings have no inputs of a sublayer, but"
        text = f"`embedding_norm` {text} {type(norm).__name__} reads them (`reads_side`)"
        raise FlagError([Finding("embedding_norm", text)])
    return norm
