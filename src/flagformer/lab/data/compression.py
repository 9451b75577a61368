"""Compression of MAD: Poli et al. 2024, arXiv 2403.17844, section 3.1."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class Compression(Generated):
    """`a b c | . . .`: `(seq_len - 1) // 2` random symbols, a separator, as many blanks: at the i-th blank
    the i-th symbol is to be predicted.

    Nothing of the answer is fed back, so that every symbol has to come from what was kept at the separator
    or, in a model with attention, from the place itself. Tokens: the symbols, then blank, then the separator.
    Departure: the authors decode from the separator's state alone by a network of its own; here the model
    itself decodes.
    """

    metric: ClassVar[str] = (
        "the symbol that belongs to each blank; accuracy: the share predicted right; chance: 1 / symbols"
    )

    source: Literal["compression"]
    symbols: int = Field(default=16, ge=2, le=LARGEST, description="How many symbols there are to draw from.")

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
