"""The base of generated tasks: rows from a random stream for each split, seed, step and length."""

from abc import abstractmethod

import torch
from torch import Tensor

from flagformer.lab.data import Source, Split, draws, short_hash
from flagformer.lab.data.disjoint import rows_of_split


class Generated(Source):
    """A task without files. Subclasses define the shortest row and generate rows."""

    @abstractmethod
    def least(self) -> tuple[int, str]:
        """The length of the shortest row, and its formula in terms of the fields."""

    @abstractmethod
    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, long [batch_size, seq_len]; `seq_len` is at least that of `least`."""

    def check(self, split: Split, seq_len: int) -> None:
        least, why = self.least()
        if seq_len < least:
            name = self.model_dump()["source"]
            raise ValueError(f"`seq_len` must be at least {least} for {name} ({why}), but is {seq_len}")

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        self.check(split, seq_len)
        return self.rows(batch_size, seq_len, draws(split, seed, step, seq_len))

    def classified(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """The class is the target at the last position."""
        if self.num_classes is None:
            return super().classified(split, step, seed, batch_size, seq_len)
        self.check(split, seq_len)
        generator = draws("classified", split, seed, step, seq_len)

        def draw() -> tuple[Tensor, Tensor]:
            inputs, targets = self.rows(batch_size, seq_len, generator)
            return inputs, targets[:, -1:]

        return rows_of_split(split, draw, batch_size)

    def fingerprint(self) -> str:
        return short_hash(self.model_dump_json(exclude={"seq_len"}).encode())
