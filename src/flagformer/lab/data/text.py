"""Batches of text: random windows for training, contiguous spans for evaluation."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from flagformer.lab.data import Source, Split, draws

BYTES = 256
GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are evenly spaced for any number of batches


class Text(Source):
    """A source of bytes, or of tokens that encode bytes. Subclasses define the content of each split."""

    has_pairs: ClassVar[bool] = True
    metric: ClassVar[str] = (
        "every byte given the bytes before it in its row; accuracy: the share of bytes predicted right"
    )

    @property
    def is_bytes(self) -> bool:
        return True

    @abstractmethod
    def content(self, split: Split) -> Tensor:
        """The bytes or tokens of one split, integers [N]; splits do not overlap."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The name of the text in messages, for files their path."""

    @property
    def num_tokens(self) -> int:
        return BYTES

    @property
    def chance(self) -> float | None:
        return None

    def sizes(self, split: Split) -> Tensor | None:
        """Bytes of text for each element of `content`, integers [N]; None: one byte each."""
        return None

    def check(self, split: Split, seq_len: int) -> None:
        self._check_size(len(self.content(split)), split, seq_len)

    def _check_size(self, size: int, split: Split, seq_len: int) -> None:
        if size < seq_len + 2:
            raise ValueError(
                f"the {split} part of {self.label} holds {size} bytes, but a length of {seq_len} "
                f"needs at least {seq_len + 2}; use a longer text or a smaller length"
            )

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Training rows are independent random windows. A held-out batch is one span of `batch_size *
        seq_len` bytes that is cut into rows: different lengths with equal `batch_size * seq_len` are
        evaluated on the same bytes.
        """
        content = self.content(split)
        self._check_size(len(content), split, seq_len)
        indices = self._indices(len(content), split, step, seed, batch_size, seq_len)
        rows = content[indices].long()  # [B, T + 1]
        return rows[:, :-1], rows[:, 1:]

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        return seq_len // 2, seq_len - seq_len // 2

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """The two halves of each row."""
        rows, _ = self.batch(split, step, seed, batch_size, seq_len)
        return rows[:, : seq_len // 2], rows[:, seq_len // 2 :]

    def target_bytes(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> int:
        sizes = self.sizes(split)
        if sizes is None:
            return batch_size * seq_len
        indices = self._indices(len(sizes), split, step, seed, batch_size, seq_len)
        return int(sizes[indices[:, 1:]].sum())

    def _indices(
        self, size: int, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> Tensor:
        """The indices of a batch in a `content` of that size, [B, T + 1]."""
        starts = size - seq_len  # a row is read with one more element, its last target
        if split == "train":
            first = torch.randint(starts, (batch_size,), generator=draws(split, seed, step))
        else:
            span = batch_size * seq_len
            origin = int((seed + step) * GOLDEN % 1.0 * max(1, size - span))
            first = (origin + seq_len * torch.arange(batch_size)) % starts
        return first[:, None] + torch.arange(seq_len + 1)
