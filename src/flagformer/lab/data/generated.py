"""The base of generated tasks: rows from a random stream for each split, seed, step and length."""

from abc import abstractmethod

import torch
from torch import Tensor

from flagformer.lab.data import Source, Split, draws, short_hash
from flagformer.lab.data.disjoint import rows_of_split

CHECKED = 8  # rows that `check` generates
VERSION = "disjoint splits "  # part of the fingerprint


class Generated(Source):
    """A task without files. Subclasses define the shortest row and generate rows."""

    @abstractmethod
    def least(self) -> tuple[int, str]:
        """The length of the shortest row, and its formula in terms of the fields."""

    @abstractmethod
    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, long [batch_size, seq_len]; `seq_len` is at least that of `least`."""

    def check_length(self, seq_len: int) -> None:
        """Raise ValueError for a row that is too short."""
        least, why = self.least()
        if seq_len < least:
            name = self.model_dump()["source"]
            raise ValueError(f"`seq_len` must be at least {least} for {name} ({why}), but is {seq_len}")

    def check(self, split: Split, seq_len: int) -> None:
        self.check_length(seq_len)
        self.batch(split, 0, 0, CHECKED, seq_len)

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Rows of one split; no row of ids of a split is one of another."""
        self.check_length(seq_len)
        generator = draws(split, seed, step, seq_len)
        if self.form != "ids":
            return self.rows(batch_size, seq_len, generator)
        return rows_of_split(split, lambda: self.rows(batch_size, seq_len, generator), batch_size)

    def classified(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """The class is the target at the last position."""
        if self.num_classes is None:
            return super().classified(split, step, seed, batch_size, seq_len)
        self.check_length(seq_len)
        generator = draws("classified", split, seed, step, seq_len)

        def draw() -> tuple[Tensor, Tensor]:
            inputs, targets = self.rows(batch_size, seq_len, generator)
            return inputs, targets[:, -1:]

        return rows_of_split(split, draw, batch_size)

    def fingerprint(self) -> str:
        return short_hash(f"{VERSION}{self.model_dump_json(exclude={'seq_len'})}".encode())


class Numbers:
    """Random numbers one at a time, drawn in blocks, as single draws from torch are slow."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.drawn: list[int] = []

    def below(self, limit: int) -> int:
        """A random number from 0 to `limit` - 1."""
        if not self.drawn:
            self.drawn = torch.randint(2**30, (256,), generator=self.generator).tolist()
        return self.drawn.pop() % limit
