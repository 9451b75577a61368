"""Which experts a token goes to, and what is asked of the choice."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHOICES = 2


class RouterOutput(NamedTuple):
    """The choice of T tokens among E experts.

    Attributes:
        experts: [T, k] long, the likeliest first.
        weights: [T, k], their probabilities, which sum to one.
        probabilities: [T, E].
    """

    experts: Tensor
    weights: Tensor
    probabilities: Tensor

    @staticmethod
    def of(logits: Tensor) -> RouterOutput:
        """Logits [T, E] of a router -> its two likeliest experts, or one where there is one."""
        probabilities = logits.softmax(dim=-1)
        best, experts = probabilities.topk(min(CHOICES, logits.shape[1]), dim=-1)
        return RouterOutput(experts, best / best.sum(dim=-1, keepdim=True), probabilities)

    def of_expert(self, number: int) -> tuple[Tensor, Tensor]:
        """The tokens that chose an expert, and as which of their choices.

        On the meta device, where nobody knows, an even share: operations can be counted there.
        """
        if self.experts.is_meta:
            share = -(-self.experts.numel() // self.probabilities.shape[1])
            return self.experts.new_empty(share), self.experts.new_empty(share)
        rows, choice = torch.where(self.experts == number)
        return rows, choice


def balance_loss(gates: RouterOutput, real: Tensor | None) -> Tensor:
    """E * sum_e (share of tokens whose first choice is e) * (mean probability of e), over real tokens [T].

    One where all experts are chosen alike, E where one is chosen always.
    """
    first = torch.zeros_like(gates.probabilities).scatter_(1, gates.experts[:, :1], 1.0)
    shares, means = (_mean(x, real) for x in (first, gates.probabilities))
    return gates.probabilities.shape[1] * (shares * means).sum()


def router_z_loss(logits: Tensor, real: Tensor | None) -> Tensor:
    """mean(logsumexp(logits) ** 2), over real tokens [T]."""
    return _mean(logits.logsumexp(dim=-1, keepdim=True).square(), real)[0]


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    """[T, E] -> [E], the mean over tokens."""
    if real is None:
        return x.mean(dim=0)
    return x.masked_fill(~real[:, None], 0.0).sum(dim=0) / real.sum().clamp(min=1)
