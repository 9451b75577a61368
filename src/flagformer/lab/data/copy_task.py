"""Copy: repeat a random string after a separator."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST, Split, draws
from flagformer.lab.data.disjoint import rows_of_split
from flagformer.lab.data.generated import Generated


class Repetition(Generated):
    """`seq_len // 2` random symbols, a separator (token `symbols`), and an answer of as many symbols.

    As a pair, the symbols are the source and the answer is the target; no source of a split is one of
    another.
    """

    has_pairs: ClassVar[bool] = True
    metric: ClassVar[str] = (
        "symbols after the separator; accuracy: the share of them predicted right; chance: 1 / symbols"
    )

    symbols: int = Field(default=32, ge=2, le=LARGEST, description="Number of different symbols.")

    @property
    def num_tokens(self) -> int:
        return self.symbols + 1

    @property
    def chance(self) -> float | None:
        return 1 / self.symbols

    def least(self) -> tuple[int, str]:
        return 2, "a symbol and the separator"

    @abstractmethod
    def answer(self, drawn: Tensor) -> Tensor:
        """The symbols after the separator, for those before it [B, seq_len // 2]."""

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        return seq_len // 2, seq_len // 2

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        self.check_length(seq_len)
        generator = draws("pairs", split, seed, step, seq_len)

        def draw() -> tuple[Tensor, Tensor]:
            drawn = torch.randint(self.symbols, (batch_size, seq_len // 2), generator=generator)
            return drawn, self.answer(drawn)

        return rows_of_split(split, draw, batch_size)

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        half = seq_len // 2
        drawn = torch.randint(self.symbols, (batch_size, half), generator=generator)
        # separators first; if seq_len is odd, there is one at the end in addition to the one in the middle
        whole = torch.full((batch_size, seq_len + 1), self.symbols)
        whole[:, :half] = drawn
        whole[:, half + 1 : 2 * half + 1] = self.answer(drawn)
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, half : 2 * half] = self.answer(drawn)
        return whole[:, :-1], targets


class Copy(Repetition):
    """`a b c | a b c`: `seq_len // 2` random symbols, a separator (token `symbols`), the same symbols again.

    The symbols after the separator are scored.
    """

    source: Literal["copy"]

    def answer(self, drawn: Tensor) -> Tensor:
        return drawn
