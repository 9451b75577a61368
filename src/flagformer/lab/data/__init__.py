"""Data: batches for training and evaluation, as a pure function of the split, the step and the seed.

A `Source` is its own configuration: its fields are the keys of the `data` block of a study or training file.
`batch` depends on its arguments alone, so a resumed run sees the data an uninterrupted one would have seen,
and for one seed every variant of a study sees the same data in the same order. To add a source: one file with
a subclass, one line in `catalogue.py`.
"""

import hashlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LONGEST = 2**24  # tokens of a row
LARGEST = 2**20  # symbols of a made-up vocabulary
IGNORE = -100  # the target of a position that is not scored; torch's own `ignore_index`


class Source(BaseModel, ABC):
    """Where batches come from. Frozen; unknown fields are refused; nothing is read before `check` or the
    first `batch`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: ClassVar[str]  # one sentence: what is scored, and what `accuracy` means here
    is_sequence: ClassVar[bool] = True  # ids in, one target a place; else images in, one target a row

    seq_len: int = Field(default=64, ge=2, le=LONGEST, description="Tokens per training sequence.")

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Size of the vocabulary: every input and every scored target lies in `0 .. num_tokens - 1`."""

    @property
    @abstractmethod
    def chance(self) -> float | None:
        """Accuracy of a model that has learned everything but the task; None where no such level is known
        (text).
        """

    @abstractmethod
    def check(self, split: Split, seq_len: int) -> None:
        """Raise ValueError or OSError, with file and sizes, if `batch` cannot generate this split at this
        length.
        """

    @abstractmethod
    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both long [batch_size, seq_len] on the CPU; `IGNORE` marks targets that are not
        scored.

        `targets[:, t]` is to be predicted from `inputs[:, : t + 1]`. A pure function of its arguments and the
        source's fields.
        """

    def model_flags(self, longest: int) -> dict[str, Any]:
        """What the data decides of a model, for rows of up to `longest` tokens; `flags` of a study come on
        top."""
        return {"model": "decoder", "num_tokens": self.num_tokens, "max_seq_len": longest}

    @property
    def is_bytes(self) -> bool:
        """Whether targets stand for bytes of a text: quality is bits per byte then, not accuracy."""
        return False

    def bytes_per_token(self, split: Split) -> float | None:
        """Bytes of text that a token stands for, on average; None where it stands for none."""
        return 1.0 if self.is_bytes else None

    def target_bytes(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> int:
        """Bytes of text that the targets of this batch stand for, where `is_bytes`."""
        raise TypeError(f"the targets of `source: {self.model_dump()['source']}` stand for no bytes")

    def example(self, rows: int, seq_len: int) -> Tensor:
        """Inputs of the shape and type that `batch` gives, all zero, on the device that is torch's
        default."""
        return torch.zeros(rows, seq_len, dtype=torch.long)

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes when the same arguments of `batch` would give other data."""


def draws(*key: str | int) -> torch.Generator:
    """A CPU generator seeded by `key` alone: the same key draws the same numbers in any process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def short_hash(content: bytes | memoryview) -> str:
    """16 hexadecimal digits that identify `content`."""
    return hashlib.sha256(content).hexdigest()[:16]
