"""Compression of MAD: Poli et al. 2024, arXiv 2403.17844, section 3.1."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class Compression(Generated):
    """`a b c | . . .`: `(seq_len - 1) // 2` random symbols, a separator, as many blanks. The target at the
    i-th blank is the i-th symbol.

    The answer is not part of the input, so every symbol must be read from the state at the separator or, with
    attention, from its position. Tokens: the symbols, then blank, then the separator. Departure: the authors
    decode from the state at the separator with a separate network; here the model itself decodes.
    """

    metric: ClassVar[str] = (
        "the symbol that belongs to each blank; accuracy: the share predicted right; chance: 1 / symbols"
    )

    source: Literal["compression"]
    symbols: int = Field(default=16, ge=2, le=LARGEST, description="Number of different symbols.")

    @property
    def num_tokens(self) -> int:
        return self.symbols + 2

    @property
    def chance(self) -> float | None:
        return 1 / self.symbols

    def least(self) -> tuple[int, str]:
        return 3, "a symbol, the separator and a blank"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        length = (seq_len - 1) // 2
        drawn = torch.randint(self.symbols, (batch_size, length), generator=generator)
        inputs = torch.full((batch_size, seq_len), self.symbols)
        inputs[:, :length] = drawn
        inputs[:, length] = self.symbols + 1
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, length + 1 : 2 * length + 1] = drawn
        return inputs, targets
