"""The base of tasks that compute a number from two others, digit by digit."""

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, Split, draws
from flagformer.lab.data.disjoint import rows_of_split
from flagformer.lab.data.generated import Generated

SIGN, EQUALS, TOKENS = 10, 11, 12


class Arithmetic(Generated):
    """Two random numbers of n digits, the sign of the operation between them, `=`, and the result.

    n is the largest number that fits; shorter rows end with `=`. The digits of the result are scored. As a
    pair, the two numbers and the sign are the source and the result is the target; no source of a split is
    one of another. Tokens: ten digits, the sign, `=`.
    """

    has_pairs: ClassVar[bool] = True

    reverse: bool = Field(
        default=False, description="Whether the result begins with its last digit, the order of the carry."
    )

    @property
    def num_tokens(self) -> int:
        return TOKENS

    @property
    def chance(self) -> float | None:
        return 0.1

    @abstractmethod
    def digits(self, seq_len: int) -> int:
        """The digits of each number in a row of `seq_len` tokens."""

    @abstractmethod
    def result(self, terms: Tensor) -> Tensor:
        """Two numbers, digits [2, B, n] with the first digit first -> the digits of the result [B, m]."""

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        self.check_length(seq_len)
        generator = draws("pairs", split, seed, step, seq_len)
        return rows_of_split(split, lambda: self._drawn(batch_size, seq_len, generator), batch_size)

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        terms, result = self._drawn(batch_size, seq_len, generator)
        first, count = terms.shape[1], result.shape[1]
        inputs = torch.full((batch_size, seq_len), EQUALS)
        inputs[:, :first] = terms
        inputs[:, first + 1 : first + count] = result[:, :-1]
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, first : first + count] = result
        return inputs, targets

    def _drawn(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The numbers with the sign between them, [B, 2 * n + 1], and the result, [B, m]."""
        terms = torch.randint(10, (2, batch_size, self.digits(seq_len)), generator=generator)
        result = self.result(terms)
        sign = torch.full((batch_size, 1), SIGN)
        return torch.cat([terms[0], sign, terms[1]], dim=1), result.flip(1) if self.reverse else result


def carried(places: Tensor) -> Tensor:
    """Sums at each decimal place, [B, m] with the first place first -> digits [B, m]."""
    places = places.clone()
    for place in range(places.shape[1] - 1, 0, -1):
        places[:, place - 1] += places[:, place] // 10
        places[:, place] %= 10
    return places
