"""Multi-query associative recall (MQAR): Arora et al. 2023, arXiv 2312.04927, and their released code."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, LARGEST
from flagformer.lab.data.generated import Generated


class AssociativeRecall(Generated):
    """`k1 v1 k2 v2 ... k2 v2 . . k1 v1 .`: pairs of a key and a value, then every key again, `asks` times.
    The target at each repeated key is its value.

    The positions of repeated keys are drawn without replacement, with probability proportional to `gap **
    (power - 1)`: mostly soon after the pairs, sometimes at the end of the row, as in the authors' code. The
    order of the keys is uniform. `asks: 1, answers: false` is the task of that code; with more repetitions
    and visible answers a small model learns it in minutes, and may copy a later answer from an earlier one.
    Departures: all other positions are blank (token 0), as random tokens could contradict a pair; only keys
    are distinct within a row, in the paper values too. Tokens: 0 blank, then `keys` keys, then `values`
    values.
    """

    metric: ClassVar[str] = (
        "the value at each repeated key; accuracy: the share of values predicted right; chance: 1 / values"
    )

    source: Literal["associative_recall"]
    pairs: int = Field(default=8, ge=1, le=LARGEST, description="Pairs to remember.")
    asks: int = Field(default=3, ge=1, le=LARGEST, description="Repetitions of each key.")
    keys: int = Field(default=32, ge=1, le=LARGEST, description="Number of different keys; at least `pairs`.")
    answers: bool = Field(default=True, description="Whether the value follows each repeated key.")
    values: int = Field(default=32, ge=2, le=LARGEST, description="Number of different values.")
    power: float = Field(
        default=0.01,
        gt=0,
        description="Exponent of the distribution of gaps; 1: uniform; 0.01, as the authors': mostly short.",
    )
    wait: int = Field(
        default=0,
        ge=0,
        le=LARGEST,
        description="Blank positions between the pairs and the first repeated key.",
    )

    @property
    def num_tokens(self) -> int:
        return 1 + self.keys + self.values

    @property
    def chance(self) -> float | None:
        return 1 / self.values

    def least(self) -> tuple[int, str]:
        if self.keys < self.pairs:
            raise ValueError(
                f"`keys` must be at least `pairs` = {self.pairs}, all different, but is {self.keys}"
            )
        return 2 * self.pairs * (1 + self.asks) + self.wait, "2 * pairs * (1 + asks) + wait"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        even = torch.ones(batch_size, self.keys)
        keys = 1 + torch.multinomial(even, self.pairs, generator=generator)  # [B, pairs], distinct in a row
        values = torch.randint(self.values, (batch_size, self.pairs), generator=generator) + 1 + self.keys
        first = 2 * self.pairs + self.wait  # possible position of a question
        gaps = (seq_len - first) // 2
        weights = torch.arange(1, gaps + 1).double() ** (self.power - 1)
        questions = self.pairs * self.asks
        positions = torch.multinomial(weights.expand(batch_size, gaps), questions, generator=generator)
        positions = first + 2 * positions  # every second position, so that a blank follows each question
        # multinomial draws likely positions first; shuffled, no key is asked earlier than another
        which = torch.rand(batch_size, questions, generator=generator).argsort(dim=-1) % self.pairs

        inputs = torch.zeros(batch_size, seq_len, dtype=torch.long)
        inputs[:, 0 : 2 * self.pairs : 2] = keys
        inputs[:, 1 : 2 * self.pairs : 2] = values
        inputs.scatter_(1, positions, keys.gather(1, which))
        wanted = values.gather(1, which)
        if self.answers:
            inputs.scatter_(1, positions + 1, wanted)  # every question is followed by another position
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets.scatter_(1, positions, wanted)
        return inputs, targets
