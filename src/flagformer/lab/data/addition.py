"""Addition of numbers, digit by digit."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from flagformer.lab.data.arithmetic import Arithmetic, carried


class Addition(Arithmetic):
    """`0 4 7 + 2 6 8 = 0 3 1 5`: two random numbers of n digits and their sum of n + 1 digits.

    n is the largest number that fits, `(seq_len - 2) // 3`; shorter rows end with `=`. The digits of the sum
    are scored. As a pair, `0 4 7 + 2 6 8` is the source and the sum is the target; no source of a split is
    one of another. Tokens: ten digits, `+`, `=`.
    """

    metric: ClassVar[str] = "digits of the sum; accuracy: the share predicted right; chance: 1 / 10"

    source: Literal["addition"]

    def least(self) -> tuple[int, str]:
        return 5, "two digits, `+`, `=` and a digit of the sum"

    def digits(self, seq_len: int) -> int:
        return (seq_len - 2) // 3

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        digits = self.digits(seq_len)
        return 2 * digits + 1, digits + 1

    def result(self, terms: Tensor) -> Tensor:
        return carried(torch.cat([torch.zeros_like(terms[0, :, :1]), terms.sum(0)], dim=1))
