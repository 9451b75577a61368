"""Infilling of text: the middle from what surrounds it (arXiv 2207.14255)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, Split, draws
from flagformer.lab.data.disjoint import rows_of_split
from flagformer.lab.data.stdlib import StandardLibrary
from flagformer.lab.data.text import BYTES

HOLE, MIDDLE = BYTES, BYTES + 1


class Infilling(StandardLibrary):
    """`d e f <hole> ( x ) : <middle>   f`: bytes before a hole and after it, then the bytes of the hole.

    The text is Python's standard library, whose files are split as in `source: stdlib`. Each row is a random
    window of `seq_len - 1` bytes; `middle` of them, at a random place with at least one byte on each side,
    are moved to the end and scored. As a pair, the bytes around the hole are the source and the bytes of the
    hole are the target. No row of a split is one of another, though files repeat each other. Tokens: 256
    bytes, hole, middle.
    """

    metric: ClassVar[str] = (
        "bytes of the hole, from those around it; accuracy: the share predicted right; chance: 1 / 256"
    )

    source: Literal["infilling"]  # type: ignore[assignment]
    middle: int = Field(default=8, ge=1, le=4096, description="Bytes of the hole.")

    @property
    def is_bytes(self) -> bool:
        return False

    @property
    def num_tokens(self) -> int:
        return BYTES + 2

    @property
    def chance(self) -> float | None:
        return 1 / BYTES

    def check(self, split: Split, seq_len: int) -> None:
        if seq_len < self.middle + 3:
            raise ValueError(
                f"`seq_len` must be at least {self.middle + 3} for infilling (`middle` = {self.middle}, a "
                f"byte on each side of it and a mark), but is {seq_len}"
            )
        super().check(split, seq_len)

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        return seq_len - self.middle, self.middle

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        self.check(split, seq_len)
        content, generator = self.content(split), draws("infilling", split, seed, step, seq_len)
        length = seq_len - 1

        def draw() -> tuple[Tensor, Tensor]:
            first = torch.randint(len(content) - length + 1, (batch_size, 1), generator=generator)
            window = content[first + torch.arange(length)].long()
            before = torch.randint(1, length - self.middle, (batch_size, 1), generator=generator)
            place = torch.arange(length - self.middle)
            around = window.gather(1, place + self.middle * (place >= before))
            hole = torch.full((batch_size, 1), HOLE)
            marked = torch.cat([around, hole], dim=1)
            order = torch.where(place < before, place, place + 1)
            marked.scatter_(1, order, around).scatter_(1, before, hole)
            return marked, window.gather(1, before + torch.arange(self.middle))

        return rows_of_split(split, draw, batch_size)

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        around, hole = self.paired(split, step, seed, batch_size, seq_len)
        first = around.shape[1]
        mark = torch.full((batch_size, 1), MIDDLE)
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, first:] = hole
        return torch.cat([around, mark, hole[:, :-1]], dim=1), targets

    def target_bytes(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> int:
        return batch_size * self.middle
