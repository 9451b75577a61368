"""Batches of text as bytes: random windows to train on, whole spans to be tested on."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from flagformer.lab.data import Source, Split, draws

BYTES = 256
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, cover a split evenly for any number of batches


class Text(Source):
    """A source of bytes, or of tokens that stand for bytes. Subclasses say what they are and where each split
    lies."""

    metric: ClassVar[str] = (
        "every byte given the bytes before it in its row; accuracy: the share of bytes guessed right"
    )

    @property
    def is_bytes(self) -> bool:
        return True

    @abstractmethod
    def content(self, split: Split) -> Tensor:
        """The bytes or tokens of one split, integers [N]. No byte lies in two splits."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What messages call this text, a path where there is one."""

    @property
    def num_tokens(self) -> int:
        return BYTES

    @property
    def chance(self) -> float | None:
        return None

    def sizes(self, split: Split) -> Tensor | None:
        """Bytes that each element of `content` stands for, integers [N]; None: one byte each."""
        return None

    def check(self, split: Split, seq_len: int) -> None:
        self._check_size(len(self.content(split)), split, seq_len)

    def _check_size(self, size: int, split: Split, seq_len: int) -> None:
        if size < seq_len + 2:
            raise ValueError(
                f"the {split} part of {self.place} holds {size} bytes, but a length of {seq_len} "
                f"needs at least {seq_len + 2}; use a longer text or a smaller length"
            )

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Training rows are independent random windows. A held-out batch is one span of `batch_size *
        seq_len` bytes cut into rows, so that lengths compared at an equal `batch_size * seq_len` are scored
        on the same bytes.
        """
        content = self.content(split)
        self._check_size(len(content), split, seq_len)
        places = self._places(len(content), split, step, seed, batch_size, seq_len)
        rows = content[places].long()  # [B, T + 1]
        return rows[:, :-1], rows[:, 1:]

    def target_bytes(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> int:
        sizes = self.sizes(split)
        if sizes is None:
            return batch_size * seq_len
        places = self._places(len(sizes), split, step, seed, batch_size, seq_len)
        return int(sizes[places[:, 1:]].sum())

    def _places(self, size: int, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> Tensor:
        """Where in a `content` of that size the elements of a batch stand, [B, T + 1]."""
        starts = size - seq_len  # a row is read with one byte more, its last target
        if split == "train":
            first = torch.randint(starts, (batch_size,), generator=draws(split, seed, step))
        else:
            span = batch_size * seq_len
            origin = int((seed + step) * GOLDEN % 1.0 * max(1, size - span))
            first = (origin + seq_len * torch.arange(batch_size)) % starts
        return first[:, None] + torch.arange(seq_len + 1)
