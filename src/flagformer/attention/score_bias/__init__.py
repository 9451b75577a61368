"""Biases of scores that depend on the tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import SideInputs


class ScoreBias(nn.Module, ABC):
    """Contract of the slot `score_bias`, built as `(dims)`: the score of query i and key j gets s_i - s_j.

    s is made of one number of each token and head, which a decode state caches in fp32. Prefix keys get no
    bias; padding has the number 0.
    """

    @abstractmethod
    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        """The numbers [B, H, T] of the tokens x [B, T, D], in fp32 at least."""

    @abstractmethod
    def sums(self, numbers: Tensor) -> Tensor:
        """The numbers [B, H, S] of all keys, in order -> s [B, H, S]. The first keys may be missing, beyond a
        window: differences of the others must not depend on them."""
