"""Selective copying: Gu and Dao 2023, arXiv 2312.00752, section 3.1; the fixed-length form of MAD,
2403.17844."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class SelectiveCopy(Generated):
    """`. a . . b c . | a b c`: `copies` random symbols at random positions among blanks, a separator, the
    symbols in order.

    The symbols are at random positions, so that a fixed offset does not find them. Tokens: the symbols, then
    blank, then the separator. Departure: the symbols are predicted one after another, each with the previous
    ones as input, as in a language model; the authors predict them at blanks.
    """

    metric: ClassVar[str] = (
        "symbols after the separator; accuracy: the share of them predicted right; chance: 1 / symbols"
    )

    source: Literal["selective_copy"]
    symbols: int = Field(default=16, ge=2, le=LARGEST, description="Number of different symbols.")
    copies: int = Field(default=8, ge=1, le=LARGEST, description="Symbols to remember.")

    @property
    def num_tokens(self) -> int:
        return self.symbols + 2

    @property
    def chance(self) -> float | None:
        return 1 / self.symbols

    def least(self) -> tuple[int, str]:
        return 2 * self.copies, "2 * copies"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        blank, separator, front = self.symbols, self.symbols + 1, seq_len - self.copies
        drawn = torch.randint(self.symbols, (batch_size, self.copies), generator=generator)
        order = torch.rand(batch_size, front, generator=generator).argsort(1)[:, : self.copies]
        positions = order.sort(1).values  # [B, copies], distinct and in order
        whole = torch.full((batch_size, seq_len + 1), blank)
        whole.scatter_(1, positions, drawn)
        whole[:, front] = separator
        whole[:, front + 1 :] = drawn
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, front:] = drawn
        return whole[:, :-1], targets
