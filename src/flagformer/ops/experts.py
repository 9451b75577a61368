"""Token routing of a mixture of experts, and its auxiliary losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHOICES = 2


class RouterOutput(NamedTuple):
    """The experts of T tokens, chosen among E.

    Attributes:
        experts: [T, k] long, the most probable first.
        weights: [T, k], their probabilities, normalised to sum to one.
        probabilities: [T, E], the softmax over all experts.
    """

    experts: Tensor
    weights: Tensor
    probabilities: Tensor

    @staticmethod
    def of(logits: Tensor) -> RouterOutput:
        """The two most probable experts by a router's logits [T, E]; one where E is 1."""
        probabilities = logits.softmax(dim=-1)
        best, experts = probabilities.topk(min(CHOICES, logits.shape[1]), dim=-1)
        return RouterOutput(experts, best / best.sum(dim=-1, keepdim=True), probabilities)

    def of_expert(self, number: int) -> tuple[Tensor, Tensor]:
        """The indices of the tokens of an expert, and its rank (0 or 1) among each token's experts.

        On the meta device, which has no values, an even share of the tokens: operations can be counted there.
        """
        if self.experts.is_meta:
            share = -(-self.experts.numel() // self.probabilities.shape[1])
            return self.experts.new_empty(share), self.experts.new_empty(share)
        rows, choice = torch.where(self.experts == number)
        return rows, choice


def balance_loss(routed: RouterOutput, valid: Tensor | None) -> Tensor:
    """E * sum_e (fraction of tokens with first expert e) * (mean probability of e), over valid tokens [T].

    1 if the experts are used equally, E if a single one is used.
    """
    first = torch.zeros_like(routed.probabilities).scatter_(1, routed.experts[:, :1], 1.0)
    fractions, means = (_mean(x, valid) for x in (first, routed.probabilities))
    return routed.probabilities.shape[1] * (fractions * means).sum()


def router_z_loss(logits: Tensor, valid: Tensor | None) -> Tensor:
    """mean(logsumexp(logits) ** 2), over valid tokens [T]."""
    return _mean(logits.logsumexp(dim=-1, keepdim=True).square(), valid)[0]


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """[T, E] -> [E], the mean over valid tokens."""
    if valid is None:
        return x.mean(dim=0)
    return x.masked_fill(~valid[:, None], 0.0).sum(dim=0) / valid.sum().clamp(min=1)
