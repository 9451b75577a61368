"""Token routing of a mixture of experts: choice of experts, and the order of tokens by expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOP_OF_GROUP = 2  # the best experts of a group, whose scores are summed to its score
TINY = 1e-20  # against 0 / 0 where the scores of all chosen experts underflow


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    probabilities = logits.softmax(dim=-1)
    return probabilities, probabilities


def _sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    return scores, scores / (scores.sum(dim=-1, keepdim=True) + TINY)


# A router's logits [T, E] -> scores [T, E] of experts, and the scores normalised to a distribution.
SCORES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"softmax": _softmax, "sigmoid": _sigmoid}


class Choice(NamedTuple):
    """How experts are chosen and weighted by their scores.

    Attributes:
        top_k: experts of a token.
        score: a key of `SCORES`.
        normalize: whether the weights of the chosen experts are divided by their sum.
        scale: a factor of all weights.
        num_groups: experts form so many groups of equal size.
        top_groups: a token chooses among the experts of so many groups.
    """

    top_k: int = 2
    score: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    num_groups: int = 1
    top_groups: int = 1


DEFAULT = Choice()


class RouterOutput(NamedTuple):
    """The experts of T tokens, chosen among E.

    Attributes:
        experts: [T, k] long, the best first.
        weights: [T, k], the weights of their outputs.
        probabilities: [T, E], the scores of all experts, normalised to sum to one.
    """

    experts: Tensor
    weights: Tensor
    probabilities: Tensor

    @staticmethod
    def of(logits: Tensor, how: Choice = DEFAULT, bias: Tensor | None = None) -> RouterOutput:
        """The k best experts by a router's logits [T, E].

        Args:
            bias: [E], added to the scores for the choice, not for the weights (2408.15664).
        """
        scores, probabilities = SCORES[how.score](logits)
        ranked = scores if bias is None else scores + bias
        if how.top_groups < how.num_groups:
            ranked = within_groups(ranked, how.num_groups, how.top_groups)
        experts = ranked.topk(min(how.top_k, logits.shape[1]), dim=-1).indices
        weights = scores.gather(1, experts)
        if how.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
        return RouterOutput(experts, weights if how.scale == 1 else weights * how.scale, probabilities)


def within_groups(ranked: Tensor, num_groups: int, top_groups: int) -> Tensor:
    """[T, E], -inf for experts outside the best groups (DeepSeek-V3, 2412.19437, section 2.1.2).

    The score of a group is the sum of its two best scores.
    """
    grouped = ranked.detach().unflatten(1, (num_groups, -1))  # [T, G, E / G]
    best = grouped.topk(min(TOP_OF_GROUP, grouped.shape[2]), dim=-1).values.sum(dim=-1)
    chosen = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(top_groups, dim=-1).indices, True)
    return ranked.masked_fill(~chosen.repeat_interleave(grouped.shape[2], dim=1), float("-inf"))


class ByExpert(NamedTuple):
    """The T * k pairs of token and expert, sorted by expert.

    Attributes:
        order: [T * k] long, the index of each pair in `RouterOutput.experts.flatten()`.
        experts: [T * k] long, its expert, non-decreasing.
        offsets: [E] int32, the end of each expert's pairs.
    """

    order: Tensor
    experts: Tensor
    offsets: Tensor

    @staticmethod
    def of(routed: RouterOutput) -> ByExpert:
        flat = routed.experts.flatten()
        order = flat.argsort(stable=True)
        experts = flat[order]
        numbers = torch.arange(routed.probabilities.shape[1], device=flat.device)
        return ByExpert(order, experts, torch.searchsorted(experts, numbers, right=True, out_int32=True))

    def unsorted(self, x: Tensor) -> Tensor:
        """Restore the original order of rows [T * k, D]."""
        positions = torch.arange(len(self.order), device=x.device)
        return x.index_select(0, torch.empty_like(self.order).scatter(0, self.order, positions))
