"""Induction heads: Olsson et al. 2022, arXiv 2209.11895, as the task of Dao et al. 2022, arXiv 2212.14052."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class Induction(Generated):
    """`x y * a z w ... *`: random symbols with one mark, and the mark again at the end. The target there is
    the symbol after the first mark.

    There is one target per row. Tokens: the symbols, then the mark.
    """

    metric: ClassVar[str] = (
        "the symbol that followed the mark; accuracy: the share predicted right; chance: 1 / symbols"
    )

    source: Literal["induction"]
    symbols: int = Field(default=16, ge=2, le=LARGEST, description="Number of different symbols.")

    @property
    def num_tokens(self) -> int:
        return self.symbols + 1

    @property
    def chance(self) -> float | None:
        return 1 / self.symbols

    @property
    def num_classes(self) -> int | None:
        return self.symbols

    def least(self) -> tuple[int, str]:
        return 3, "the mark, a symbol, the mark"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.randint(self.symbols, (batch_size, seq_len), generator=generator)
        marks = torch.randint(seq_len - 2, (batch_size, 1), generator=generator)
        wanted = inputs.gather(1, marks + 1)
        inputs.scatter_(1, marks, self.symbols)
        inputs[:, -1] = self.symbols
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, -1:] = wanted
        return inputs, targets
