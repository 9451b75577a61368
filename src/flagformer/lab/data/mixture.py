"""Rows of several sources, in shares."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from flagformer.lab.data import Source, Split, draws, short_hash
from flagformer.lab.data.sources import PartSource

PERIOD = 10_000  # rows in which every source has its share


class Part(BaseModel):
    """One source of a mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(gt=0, le=1e9, description="Share of the rows, relative to the other weights.")
    data: PartSource = Field(description="The source, no mixture; `seq_len` is that of the mixture.")


class Mixture(Source):
    """Rows of several sources in shares of `weight`, in a random order. All read the same vocabulary of ids:
    its size is the largest of theirs.

    Every source continues where its last row ended, so that its epochs are as without a mixture. Of 10,000
    rows each source has its share up to one row.
    """

    metric: ClassVar[str] = "the targets of the sources of a mixture; accuracy: the share predicted right"

    source: Literal["mixture"]
    parts: dict[str, Part] = Field(min_length=2, max_length=1000, description="The sources by name.")

    @field_validator("parts")
    @classmethod
    def _are_texts(cls, parts: dict[str, Part]) -> dict[str, Part]:
        for name, part in parts.items():
            if part.data.form != "ids":
                text = f"`parts` must be sources of tokens, but `{name}` is a source of {part.data.form}"
                raise ValueError(text)
            if "seq_len" in part.data.model_fields_set:
                raise ValueError(
                    f"`seq_len` is of the mixture, but `{name}` sets its own; leave it out there"
                )
        return parts

    @property
    def num_tokens(self) -> int:
        return max(part.data.num_tokens for part in self.parts.values())

    @property
    def chance(self) -> float | None:
        return None

    @property
    def is_bytes(self) -> bool:
        return all(part.data.is_bytes for part in self.parts.values())

    @property
    def is_packed(self) -> bool:
        return any(part.data.is_packed for part in self.parts.values())

    @property
    def predicts_next(self) -> bool:
        return all(part.data.predicts_next for part in self.parts.values())

    def check(self, split: Split, seq_len: int) -> None:
        for name, part in self.parts.items():
            try:
                part.data.check(split, seq_len)
            except ValueError as error:
                raise ValueError(f"`{name}` of the mixture: {error}") from None

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        rows = [
            source.batch(split, row, seed, 1, seq_len)
            for source, row in self._rows(split, step, seed, batch_size)
        ]
        return torch.cat([inputs for inputs, _ in rows]), torch.cat([targets for _, targets in rows])

    def sequence_lengths(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> Tensor | None:
        found = [
            source.sequence_lengths(split, row, seed, 1, seq_len)
            for source, row in self._rows(split, step, seed, batch_size)
        ]
        if all(one is None for one in found):
            return None
        rows = [torch.tensor([seq_len]) if one is None else one[0] for one in found]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def target_bytes(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> int:
        return sum(
            source.target_bytes(split, row, seed, 1, seq_len)
            for source, row in self._rows(split, step, seed, batch_size)
        )

    def bytes_per_token(self, split: Split) -> float | None:
        return None

    def fingerprint(self) -> str:
        found = [f"{name} {part.weight} {part.data.fingerprint()}" for name, part in self.parts.items()]
        return short_hash("\n".join(found).encode())

    def _rows(self, split: Split, step: int, seed: int, batch_size: int) -> list[tuple[Source, int]]:
        """The source of each row of a batch, and the number of the row among those of that source."""
        sources = [part.data for part in self.parts.values()]
        weights = tuple(part.weight for part in self.parts.values())
        order, before, totals = _schedule(weights, split, seed)
        found: list[tuple[Source, int]] = []
        for number in range(step * batch_size, (step + 1) * batch_size):
            period, place = divmod(number, PERIOD)
            which = int(order[place])
            found.append((sources[which], period * int(totals[which]) + int(before[place])))
        return found


@functools.lru_cache(maxsize=8)
def _schedule(weights: tuple[float, ...], split: Split, seed: int) -> tuple[Any, Any, Any]:
    """The source of each row of a period, the rows of that source before it, and those of each source in the
    period."""
    shares = np.array(weights) / sum(weights) * PERIOD
    totals = np.floor(shares).astype(int)
    totals[np.argsort(totals - shares, kind="stable")[: PERIOD - totals.sum()]] += 1
    order = np.repeat(np.arange(len(weights)), totals)
    order = order[torch.randperm(PERIOD, generator=draws("mixture", split, seed)).numpy()]
    before = np.empty(PERIOD, dtype=int)
    for which, total in enumerate(totals):
        before[order == which] = np.arange(total)
    return order, before, totals
