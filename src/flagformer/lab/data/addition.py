"""Addition of numbers, digit by digit."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, Split, draws
from flagformer.lab.data.disjoint import rows_of_split
from flagformer.lab.data.generated import Generated

PLUS, EQUALS, TOKENS = 10, 11, 12


class Addition(Generated):
    """`0 4 7 + 2 6 8 = 0 3 1 5`: two random numbers of n digits and their sum of n + 1 digits.

    n is the largest number that fits, `(seq_len - 2) // 3`; shorter rows end with `=`. The digits of the sum
    are scored. As a pair, `0 4 7 + 2 6 8` is the source and the sum is the target; no source of a split is
    one of another. Tokens: ten digits, `+`, `=`.
    """

    has_pairs: ClassVar[bool] = True
    metric: ClassVar[str] = "digits of the sum; accuracy: the share predicted right; chance: 1 / 10"

    source: Literal["addition"]
    reverse: bool = Field(
        default=False, description="Whether the sum begins with its last digit, the order of the carry."
    )

    @property
    def num_tokens(self) -> int:
        return TOKENS

    @property
    def chance(self) -> float | None:
        return 0.1

    def least(self) -> tuple[int, str]:
        return 5, "two digits, `+`, `=` and a digit of the sum"

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        digits = (seq_len - 2) // 3
        return 2 * digits + 1, digits + 1

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        self.check(split, seq_len)
        generator = draws("pairs", split, seed, step, seq_len)
        digits = (seq_len - 2) // 3
        return rows_of_split(split, lambda: self._sums(batch_size, digits, generator), batch_size)

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        terms, total = self._sums(batch_size, (seq_len - 2) // 3, generator)
        first, count = terms.shape[1], total.shape[1]
        inputs = torch.full((batch_size, seq_len), EQUALS)
        inputs[:, :first] = terms
        inputs[:, first + 1 : first + count] = total[:, :-1]
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, first : first + count] = total
        return inputs, targets

    def _sums(self, batch_size: int, digits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`a + b`, [B, 2 * digits + 1], and the sum, [B, digits + 1]."""
        terms = torch.randint(10, (2, batch_size, digits), generator=generator)
        total = torch.zeros(batch_size, digits + 1, dtype=torch.long)
        total[:, 1:] = terms.sum(0)
        for place in range(digits, 0, -1):
            total[:, place - 1] += total[:, place] // 10
            total[:, place] %= 10
        plus = torch.full((batch_size, 1), PLUS)
        return torch.cat([terms[0], plus, terms[1]], dim=1), total.flip(1) if self.reverse else total
