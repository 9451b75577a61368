"""One pair asked for after all that `seq_len` puts between: does anything last that long?"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class LongRetrieval(Generated):
    """`noise k v noise ... noise k`: one pair in the first eighth of the row, the key again at its end.

    One target a row, the value. Noise is drawn from symbols of its own, so that the pair is plain to see and
    only the distance is hard. Tokens: `noise` symbols, then `keys`, then `values`.
    """

    metric: ClassVar[str] = (
        "the value of the key at the end; accuracy: the share predicted right; chance: 1 / values"
    )

    source: Literal["long_retrieval"]
    keys: int = Field(default=8, ge=1, le=LARGEST, description="Different keys there are.")
    values: int = Field(default=16, ge=2, le=LARGEST, description="Different values there are.")
    noise: int = Field(default=16, ge=1, le=LARGEST, description="Different symbols in between.")

    @property
    def num_tokens(self) -> int:
        return self.noise + self.keys + self.values

    @property
    def chance(self) -> float | None:
        return 1 / self.values

    def least(self) -> tuple[int, str]:
        return 3, "the pair and the key"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        key = self.noise + torch.randint(self.keys, (batch_size, 1), generator=generator)
        drawn = torch.randint(self.values, (batch_size, 1), generator=generator)
        value = drawn + self.noise + self.keys
        inputs = torch.randint(self.noise, (batch_size, seq_len), generator=generator)
        place = torch.randint(max(1, (seq_len - 2) // 8), (batch_size, 1), generator=generator)
        inputs.scatter_(1, place, key).scatter_(1, place + 1, value)
        inputs[:, -1:] = key
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, -1:] = value
        return inputs, targets
