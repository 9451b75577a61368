"""Retrieval of one pair from the beginning of a row at its end."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class LongRetrieval(Generated):
    """`noise k v noise ... noise k`: one pair in the first eighth of the row, the key again at its end.

    There is one target per row, the value. Noise has separate symbols, so that only the distance is
    difficult. Tokens: `noise` symbols, then `keys`, then `values`.
    """

    metric: ClassVar[str] = (
        "the value of the key at the end; accuracy: the share predicted right; chance: 1 / values"
    )

    source: Literal["long_retrieval"]
    keys: int = Field(default=8, ge=1, le=LARGEST, description="Number of different keys.")
    values: int = Field(default=16, ge=2, le=LARGEST, description="Number of different values.")
    noise: int = Field(default=16, ge=1, le=LARGEST, description="Number of different symbols of the noise.")

    @property
    def num_tokens(self) -> int:
        return self.noise + self.keys + self.values

    @property
    def chance(self) -> float | None:
        return 1 / self.values

    @property
    def num_classes(self) -> int | None:
        return self.num_tokens

    def least(self) -> tuple[int, str]:
        return 3, "the pair and the key"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        key = self.noise + torch.randint(self.keys, (batch_size, 1), generator=generator)
        drawn = torch.randint(self.values, (batch_size, 1), generator=generator)
        value = drawn + self.noise + self.keys
        inputs = torch.randint(self.noise, (batch_size, seq_len), generator=generator)
        start = torch.randint(max(1, (seq_len - 2) // 8), (batch_size, 1), generator=generator)
        inputs.scatter_(1, start, key).scatter_(1, start + 1, value)
        inputs[:, -1:] = key
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, -1:] = value
        return inputs, targets
