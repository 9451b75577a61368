"""Contrastive decoding with an expert and amateur models (arXiv:2309.09117)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flagformer.generation.filters import is_number


class Amateur(NamedTuple):
    """An amateur model, its attention window, and whether it uses a decode state."""

    model: Any
    window: int | None
    cached: bool


class ContrastiveDecoding(NamedTuple):
    """Amateur models and the settings of contrastive decoding."""

    amateurs: tuple[Amateur, ...]
    beta: float
    alpha: float


def contrast(expert: Tensor, amateur: Tensor, beta: float = 0.5, alpha: float = 0.1) -> Tensor:
    """(1 + beta) * expert - beta * amateur, for the tokens that are plausible to the expert.

    Plausible tokens have at least `alpha` times the probability of the expert's most likely token; the others
    get minus infinity (appendix A, algorithm 2). Logits are [..., V].
    """
    if not is_number(beta) or beta < 0:
        raise ValueError(f"`beta` must be a number of at least 0, but is {beta!r}")
    if not is_number(alpha) or not 0 < alpha <= 1:
        raise ValueError(f"`alpha` must be a number above 0 and at most 1, but is {alpha!r}")
    threshold = math.log(alpha) + expert.amax(dim=-1, keepdim=True)
    return ((1 + beta) * expert - beta * amateur).masked_fill(expert < threshold, -math.inf)


def contrasted(
    expert: Callable[[Tensor], Tensor],
    amateurs: Sequence[Callable[[Tensor], Tensor]],
    beta: float,
    alpha: float,
) -> Callable[[Tensor], Tensor]:
    """A function from tokens to the expert's logits, contrasted with each amateur in turn."""

    def next_logits(tokens: Tensor) -> Tensor:
        logits = expert(tokens)
        for amateur in amateurs:
            logits = contrast(logits, amateur(tokens).to(logits.dtype), beta, alpha)
        return logits

    return next_logits


def read_settings(settings: object) -> tuple[float, float]:
    """Check `contrastive_decode_kwargs` and return (beta, alpha)."""
    given = {} if settings is None else settings
    if not isinstance(given, dict) or not set(given) <= {"beta", "alpha"}:
        raise ValueError(
            f"`contrastive_decode_kwargs` must hold `beta` and `alpha` only, but is {settings!r}"
        )
    beta, alpha = given.get("beta", 0.5), given.get("alpha", 0.1)
    contrast(torch.zeros(1, 1), torch.zeros(1, 1), beta, alpha)
    return beta, alpha
