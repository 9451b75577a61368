"""Multi-query associative recall (MQAR), Arora et al. 2023, arXiv 2312.04927, section 3 and appendix E."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.data import IGNORE, Source, Split, draws, short_hash


class AssociativeRecall(Source):
    """`k1 v1 k2 v2 ... . . k2 . k1 .`: pairs of a key and a value, then every key once more; its value is to
    be predicted there.

    Keys are distinct within a sequence, values are not. A key is asked for at a place drawn without
    replacement with probability proportional to `gap ** (power - 1)`: mostly soon after the pairs, sometimes
    at the very end, as in the paper. Departure: the places between are blank (token 0) where the authors'
    code offers random tokens too, because a random token could contradict a pair. Tokens: 0 blank, then
    `keys` keys, then `values` values.
    """

    metric: ClassVar[str] = (
        "the value at each repeated key; accuracy: the share of values predicted right; chance: 1 / values"
    )

    source: Literal["associative_recall"]
    pairs: int = Field(default=8, ge=1, description="Pairs to remember; each is asked for once.")
    keys: int = Field(default=32, ge=1, description="Different keys there are; at least `pairs`.")
    values: int = Field(default=32, ge=2, description="Different values there are.")
    power: float = Field(
        default=0.01,
        gt=0,
        description="Exponent of the law of gaps; 1 is uniform, the paper's 0.01 favours short ones.",
    )

    @property
    def num_tokens(self) -> int:
        return 1 + self.keys + self.values

    @property
    def chance(self) -> float | None:
        return 1 / self.values

    def check(self, split: Split, seq_len: int) -> None:
        if self.keys < self.pairs:
            raise ValueError(
                f"`keys` must be at least `pairs` = {self.pairs}, all different, but is {self.keys}"
            )
        if seq_len < 4 * self.pairs:
            raise ValueError(
                f"`seq_len` must be at least 4 * pairs = {4 * self.pairs} for associative_recall, "
                f"but is {seq_len}; use a longer sequence or fewer pairs"
            )

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        self.check(split, seq_len)
        generator = draws(split, seed, step, seq_len)
        even = torch.ones(batch_size, self.keys)
        keys = 1 + torch.multinomial(even, self.pairs, generator=generator)  # [B, pairs], distinct in a row
        values = torch.randint(self.values, (batch_size, self.pairs), generator=generator) + 1 + self.keys
        gaps = (seq_len - 2 * self.pairs) // 2
        weights = torch.arange(1, gaps + 1).double() ** (self.power - 1)
        asked = torch.multinomial(weights.expand(batch_size, gaps), self.pairs, generator=generator)
        asked = 2 * self.pairs + 2 * asked  # every second place, so that a blank follows each question

        inputs = torch.zeros(batch_size, seq_len, dtype=torch.long)
        inputs[:, 0 : 2 * self.pairs : 2] = keys
        inputs[:, 1 : 2 * self.pairs : 2] = values
        inputs.scatter_(1, asked, keys)
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets.scatter_(1, asked, values)
        return inputs, targets

    def fingerprint(self) -> str:
        return short_hash(self.model_dump_json(exclude={"seq_len"}).encode())
