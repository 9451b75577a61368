"""Multiplication of numbers, digit by digit."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from flagformer.lab.data.arithmetic import Arithmetic, carried


class Multiplication(Arithmetic):
    """`4 7 * 2 6 = 1 2 2 2`: two random numbers of n digits and their product of 2 n digits.

    n is the largest number that fits, `(seq_len - 1) // 4`; shorter rows end with `=`. The digits of the
    product are scored. As a pair, `4 7 * 2 6` is the source and the product is the target; no source of a
    split is one of another. Tokens: ten digits, `*`, `=`.
    """

    metric: ClassVar[str] = "digits of the product; accuracy: the share predicted right; chance: 1 / 10"

    source: Literal["multiplication"]

    def least(self) -> tuple[int, str]:
        return 5, "two digits, `*`, `=` and a digit of the product"

    def digits(self, seq_len: int) -> int:
        return (seq_len - 1) // 4

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        digits = self.digits(seq_len)
        return 2 * digits + 1, 2 * digits

    def result(self, terms: Tensor) -> Tensor:
        count = terms.shape[2]
        places = torch.zeros(terms.shape[1], 2 * count, dtype=torch.long)
        for place in range(count):
            places[:, place + 1 : place + 1 + count] += terms[0, :, place, None] * terms[1]
        return carried(places)
