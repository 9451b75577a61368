"""Fuzzy in-context recall of MAD: Poli et al. 2024, arXiv 2403.17844, section 3.1."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class FuzzyRecall(Generated):
    """`k1 k1' v1 v1' k2 k2' v2 v2' ... k2 k2' v2 v2'`: associative recall whose keys and values are `width`
    tokens each, so that a single token does not identify a key.

    `pairs` pairs with different keys, then each key again with its value; the row begins with blanks (token
    0) if it is longer. The tokens of the values after the repeated keys are scored. Tokens: blank, then
    `keys`, then `values`. Departure: all keys and values have one width; the authors draw widths from 1 to 3.
    """

    metric: ClassVar[str] = (
        "the tokens of the value after each repeated key; accuracy: the share of tokens right; "
        "chance: 1 / values"
    )

    source: Literal["fuzzy_recall"]
    pairs: int = Field(default=6, ge=1, le=LARGEST, description="Pairs to remember.")
    width: int = Field(default=2, ge=1, le=16, description="Tokens of a key and of a value.")
    keys: int = Field(default=8, ge=2, le=4096, description="Number of different tokens in keys.")
    values: int = Field(default=8, ge=2, le=LARGEST, description="Number of different tokens in values.")

    @property
    def num_tokens(self) -> int:
        return 1 + self.keys + self.values

    @property
    def chance(self) -> float | None:
        return 1 / self.values

    def least(self) -> tuple[int, str]:
        if self.pairs > min(self.keys**self.width, LARGEST):
            raise ValueError(
                f"`pairs` must be at most keys ** width = {self.keys**self.width}, all different, "
                f"but is {self.pairs}"
            )
        return 4 * self.width * self.pairs, "4 * width * pairs"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (batch_size, self.pairs, self.width)
        keys = 1 + self._different(batch_size, generator)
        values = torch.randint(self.values, shape, generator=generator) + 1 + self.keys
        order = torch.rand(batch_size, self.pairs, generator=generator).argsort(1)[..., None].expand(shape)
        stored = torch.cat([keys, values], dim=-1)  # [B, pairs, 2 * width]
        asked = torch.cat([keys.gather(1, order), values.gather(1, order)], dim=-1)
        row = torch.cat([stored.flatten(1), asked.flatten(1)], dim=1)
        scored = torch.full_like(stored, IGNORE)
        scored[..., self.width :] = values.gather(1, order)
        wanted = torch.cat([torch.full_like(stored, IGNORE).flatten(1), scored.flatten(1)], dim=1)
        front = seq_len - row.shape[1]
        inputs = torch.cat([torch.zeros(batch_size, front, dtype=torch.long), row], dim=1)
        # a target is at the position before its token
        targets = torch.cat([torch.full((batch_size, front), IGNORE), wanted], dim=1).roll(-1, 1)
        return inputs, targets

    def _different(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Keys [B, pairs, width], all different in a row: different numbers, written in base `keys`."""
        many = min(self.keys**self.width, LARGEST)
        numbers = torch.rand(batch_size, many, generator=generator).argsort(1)[:, : self.pairs]
        powers = self.keys ** torch.arange(self.width)
        return numbers[..., None] // powers % self.keys
