"""Recall over segments: pairs are told in one segment and asked for in later ones, as memories are for."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.data import IGNORE, LARGEST
from flagformer.data.generated import Generated


class SegmentRecall(Generated):
    """`k1 v1 k2 v2 noise || noise k2 v2 noise || ...`: `pairs` pairs stand at the start of the first of
    `segments` equal segments; every later segment asks for each of them, in noise, and shows the answer.

    With `seq_len` a segment of a model's memory, an answer needs what was read segments before. Tokens:
    `noise` symbols, then `keys`, then `values`. Scored are the values behind the repeated keys. What of
    `seq_len` is no whole segment stands in front, as noise.
    """

    metric: ClassVar[str] = (
        "the value behind each key that is asked in a later segment; accuracy: the share right; "
        "chance: 1 / values"
    )

    source: Literal["segment_recall"]
    segments: int = Field(default=4, ge=2, le=4096, description="Equal parts of a row.")
    pairs: int = Field(default=4, ge=1, le=LARGEST, description="Pairs to remember.")
    keys: int = Field(default=16, ge=1, le=LARGEST, description="Different keys there are; at least `pairs`.")
    values: int = Field(default=16, ge=2, le=LARGEST, description="Different values there are.")
    noise: int = Field(default=8, ge=1, le=LARGEST, description="Different symbols between the pairs.")

    @property
    def num_tokens(self) -> int:
        return self.noise + self.keys + self.values

    @property
    def chance(self) -> float | None:
        return 1 / self.values

    def least(self) -> tuple[int, str]:
        if self.keys < self.pairs:
            raise ValueError(
                f"`keys` must be at least `pairs` = {self.pairs}, all different, but is {self.keys}"
            )
        return 2 * self.pairs * self.segments, "2 * pairs * segments"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        length = seq_len // self.segments
        even = torch.ones(batch_size, self.keys)
        keys = self.noise + torch.multinomial(even, self.pairs, generator=generator)  # [B, pairs], distinct
        drawn = torch.randint(self.values, (batch_size, self.pairs), generator=generator)
        values = drawn + self.noise + self.keys
        inputs = torch.randint(self.noise, (batch_size, seq_len), generator=generator)
        targets = torch.full((batch_size, seq_len), IGNORE)
        front = seq_len - length * self.segments
        inputs[:, front : front + 2 * self.pairs : 2] = keys
        inputs[:, front + 1 : front + 2 * self.pairs : 2] = values
        for segment in range(1, self.segments):
            start = front + segment * length
            # each pair takes two places; where in its segment it stands is drawn
            order = torch.rand(batch_size, length // 2, generator=generator).argsort(1)[:, : self.pairs]
            places = start + 2 * order
            inputs.scatter_(1, places, keys).scatter_(1, places + 1, values)
            targets.scatter_(1, places, values)
        return inputs, targets
