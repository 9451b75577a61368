"""Auxiliary losses of a router, over valid tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.ops.experts import RouterOutput


def balance_loss(routed: RouterOutput, valid: Tensor | None, choices: int = 1) -> Tensor:
    """E * sum_e f_e P_e over tokens [T]: f_e the mean number of choices of e, P_e its mean probability.

    1 if the experts are used equally, E if a single one is used (2101.03961, equation 4), times `choices`.

    Args:
        valid: [T] bool, or None if all tokens are.
        choices: the experts of a token that count, the best first.
    """
    chosen = _chosen(routed.probabilities, routed.experts[:, :choices])
    fractions, means = (_mean(x, valid) for x in (chosen, routed.probabilities))
    return routed.probabilities.shape[1] * (fractions * means).sum()


def router_z_loss(logits: Tensor, valid: Tensor | None) -> Tensor:
    """mean(logsumexp(logits) ** 2), over valid tokens [T] (2202.08906, equation 5)."""
    return _mean(logits.logsumexp(dim=-1, keepdim=True).square(), valid)[0]


def sequence_balance_loss(probabilities: Tensor, top_k: int, sequences: Tensor, count: int) -> Tensor:
    """The mean over sequences of E / k * sum_e f_e P_e (DeepSeek-V3, 2412.19437, equations 17 to 20).

    f_e is the mean number of tokens of the sequence that have e among their k best, without the balance bias,
    P_e the mean probability of e. 1 if the experts are used equally.

    Args:
        probabilities: [T, E].
        sequences: [T] long, the sequence of each token; `count` for padding.
        count: the number of sequences. Those without tokens do not count.
    """
    chosen = _chosen(probabilities, probabilities.topk(top_k, dim=-1).indices)
    lengths = _sums(torch.ones_like(probabilities[:, :1]), sequences, count)  # [S, 1]
    fractions, means = (_sums(x, sequences, count) / lengths.clamp(min=1) for x in (chosen, probabilities))
    total = (fractions * means).sum() * probabilities.shape[1] / top_k
    return total / (lengths > 0).sum().clamp(min=1)


def _chosen(probabilities: Tensor, experts: Tensor) -> Tensor:
    """[T, E], 1 for chosen experts."""
    return torch.zeros_like(probabilities).scatter(1, experts, 1.0)


def _sums(x: Tensor, sequences: Tensor, count: int) -> Tensor:
    """[T, E] -> [S, E], the sum of each sequence."""
    return x.new_zeros(count + 1, x.shape[1]).index_add(0, sequences, x)[:count]


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """[T, E] -> [E], the mean over valid tokens."""
    if valid is None:
        return x.mean(dim=0)
    return x.masked_fill(~valid[:, None], 0.0).sum(dim=0) / valid.sum().clamp(min=1)
