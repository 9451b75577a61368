"""Flags of the embeddings of tokens: token types, further tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from torch import Tensor

from flagformer.flags import ANY, Finding, Flag, FlagError
from flagformer.ops.identity import identity

Step = Callable[[Tensor], Tensor]
TOKEN_TYPE = "token_type"
MaxSeqLen = Annotated[
    int, Flag("max_seq_len", "size of a learned position table; other schemes may exceed it", ge=0)
]
TokenTypes = Annotated[
    int,
    Flag(
        "num_token_types",
        "ids of `token_type_ids`, whose embedding is added (1810.04805)",
        ge=0,
        example=2,
        neutral=ANY,
    ),
]
EmbedNumTokens = Annotated[
    dict[str, int] | None,
    Flag("embed_num_tokens", "further embeddings: name -> number of ids (`embed_ids`)", ge=1, neutral=ANY),
]
GradientShare = Annotated[
    float, Flag("emb_frac_gradient", "share of the gradient for embeddings (2105.13290)", ge=0.001)
]


def step_of(module: Step, empty: type) -> Step:
    """The module, or in place of one of the class `empty`, which returns x, a function without its cost."""
    return identity if type(module) is empty else module


def embedding_kinds(given: Mapping[str, int] | None, token_types: int) -> dict[str, int]:
    """name -> number of ids of each further embedding, token types first."""
    kinds = {TOKEN_TYPE: token_types} if token_types else {}
    given = given or {}
    if not all(name.isidentifier() for name in given):
        text = f"`embed_num_tokens` must hold identifiers, but holds {', '.join(map(repr, given))}"
        raise FlagError([Finding("embed_num_tokens", text)])
    if kinds.keys() & given.keys():
        text = f"`num_token_types` and '{TOKEN_TYPE}' in `embed_num_tokens` cannot be combined, because both"
        raise FlagError(
            [Finding("num_token_types", f"{text} name the same embedding; leave one of them out")]
        )
    return {**kinds, **given}
