"""Contrastive decoding: what a strong model likes more than a weak one (arXiv:2309.09117)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flagformer.generation.filters import is_number


class Amateur(NamedTuple):
    """A model to be contrasted with: what it is, how far its tokens see, whether it keeps a decode state."""

    model: Any
    window: int | None
    cached: bool


class ContrastiveDecoding(NamedTuple):
    """The models that a decoding is contrasted with, and how."""

    amateurs: tuple[Amateur, ...]
    beta: float
    alpha: float


def contrast(expert: Tensor, amateur: Tensor, beta: float = 0.5, alpha: float = 0.1) -> Tensor:
    """(1 + beta) * expert - beta * amateur, among the tokens that the expert finds plausible.

    Plausible: of at least `alpha` times the probability of the expert's likeliest token; the others get minus
    infinity (appendix A, algorithm 2). Logits are [..., V].
    """
    if not is_number(beta) or beta < 0:
        raise ValueError(f"`beta` must be a number of at least 0, but is {beta!r}")
    if not is_number(alpha) or not 0 < alpha <= 1:
        raise ValueError(f"`alpha` must be a number above 0 and at most 1, but is {alpha!r}")
    least = math.log(alpha) + expert.amax(dim=-1, keepdim=True)
    return ((1 + beta) * expert - beta * amateur).masked_fill(expert < least, -math.inf)


def contrasted(
    expert: Callable[[Tensor], Tensor],
    amateurs: Sequence[Callable[[Tensor], Tensor]],
    beta: float,
    alpha: float,
) -> Callable[[Tensor], Tensor]:
    """A reader of the expert's logits, each amateur's taken off in turn."""

    def read(tokens: Tensor) -> Tensor:
        logits = expert(tokens)
        for amateur in amateurs:
            logits = contrast(logits, amateur(tokens).to(logits.dtype), beta, alpha)
        return logits

    return read


def read_settings(settings: object) -> tuple[float, float]:
    """`contrastive_decode_kwargs` -> (beta, alpha), checked by name and value."""
    given = {} if settings is None else settings
    if not isinstance(given, dict) or not set(given) <= {"beta", "alpha"}:
        raise ValueError(
            f"`contrastive_decode_kwargs` must hold `beta` and `alpha` only, but is {settings!r}"
        )
    beta, alpha = given.get("beta", 0.5), given.get("alpha", 0.1)
    contrast(torch.zeros(1, 1), torch.zeros(1, 1), beta, alpha)
    return beta, alpha
