"""Parity of a bit string, which attention of fixed depth cannot compute for every length: Hahn 2020, arXiv
1906.06755."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from flagformer.lab.data.generated import Generated


class Parity(Generated):
    """`0 1 1 0 1` -> `0 1 0 0 1`: the target at every bit is the parity of the bits up to it.

    Every position is scored; early ones are easy, so the loss by position shows how far a model counts.
    """

    metric: ClassVar[str] = (
        "the parity of the bits so far, at every position; accuracy: the share right; chance: 1 / 2"
    )

    source: Literal["parity"]

    @property
    def num_tokens(self) -> int:
        return 2

    @property
    def chance(self) -> float | None:
        return 0.5

    @property
    def num_classes(self) -> int | None:
        return 2

    def least(self) -> tuple[int, str]:
        return 2, "two bits"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.randint(2, (batch_size, seq_len), generator=generator)
        return inputs, inputs.cumsum(1) % 2
