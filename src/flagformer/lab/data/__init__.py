"""Data: batches for training and evaluation, as a pure function of the split, the step and the seed.

A `Source` is its own configuration: its fields are the keys of the `data` block of a study or training file.
`batch` depends on its arguments alone, so a resumed run reads the same data as an uninterrupted one, and for
one seed every variant of a study reads the same data in the same order. To add a source, write one file with
a subclass and one line in `catalogue.py`. An own class has a field `source: str`, which
holds its import path.
"""

import hashlib
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Form = Literal["ids", "images", "vectors"]
LONGEST = 2**24  # tokens of a row
LARGEST = 2**20  # symbols of a generated task
IGNORE = -100  # the target of a position that is not scored; torch's own `ignore_index`


class Source(BaseModel, ABC):
    """A source of batches. It is frozen and refuses unknown fields; `check` or the first `batch` reads the
    data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: ClassVar[str]  # one sentence: the scored targets and the definition of `accuracy`
    form: ClassVar[Form] = "ids"  # ids with a target per position, images with one, or vectors
    has_pairs: ClassVar[bool] = False  # whether `paired` gives a source and a target
    pads_pairs: ClassVar[bool] = False  # whether `paired` pads sources with `IGNORE`
    pads_classified: ClassVar[bool] = False  # whether `classified` pads rows with `IGNORE`

    seq_len: int = Field(default=64, ge=2, le=LONGEST, description="Tokens per training sequence.")

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Size of the vocabulary: inputs and scored targets are from 0 to `num_tokens - 1`."""

    @property
    @abstractmethod
    def chance(self) -> float | None:
        """Accuracy of a random guess among the possible answers; None for text."""

    @abstractmethod
    def check(self, split: Split, seq_len: int) -> None:
        """Raise ValueError or OSError if `batch` cannot generate this split at this length."""

    @abstractmethod
    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both long [batch_size, seq_len] on the CPU; `IGNORE` marks targets that are not
        scored.

        `targets[:, t]` is predicted from `inputs[:, : t + 1]`. The result depends only on the arguments and
        the fields of the source.
        """

    @property
    def model(self) -> str:
        """The default kind of model."""
        return "decoder"

    @property
    def predicts_next(self) -> bool:
        """Whether targets are later inputs, so that a model must be causal."""
        return True

    @property
    def image(self) -> dict[str, int]:
        """The size of an image, as flags of a vision transformer."""
        raise TypeError(f"rows of `source: {self.model_dump()['source']}` are not images")

    @property
    def num_classes(self) -> int | None:
        """Number of classes of a row, for `classified`; None if rows have no class."""
        return None

    def classified(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Rows, long [batch_size, seq_len], and the class of each, [batch_size, 1]; no row of a split is one
        of another."""
        raise TypeError(f"rows of `source: {self.model_dump()['source']}` have no class")

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        """The lengths of a source and of a target, together at most `seq_len`."""
        raise TypeError(f"rows of `source: {self.model_dump()['source']}` are not pairs")

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Sources and targets of the lengths `pair_lengths`, long, if `has_pairs`. `IGNORE` marks targets
        that are not scored."""
        raise TypeError(f"rows of `source: {self.model_dump()['source']}` are not pairs")

    @property
    def is_bytes(self) -> bool:
        """Whether targets encode the bytes of a text, so that quality is bits per byte instead of
        accuracy."""
        return False

    def bytes_per_token(self, split: Split) -> float | None:
        """Mean number of bytes of text per token; None if tokens do not encode bytes."""
        return 1.0 if self.is_bytes else None

    def target_bytes(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> int:
        """Bytes of text that the targets of this batch encode, if `is_bytes`."""
        raise TypeError(f"the targets of `source: {self.model_dump()['source']}` do not encode bytes")

    @property
    def is_packed(self) -> bool:
        """Whether `sequence_lengths` gives lengths: rows hold several sequences, or padding."""
        return False

    def sequence_lengths(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> Tensor | None:
        """Lengths of the sequences in each row of this batch, long [batch_size, N] filled with zeros, the
        `seq_lens` of a model; tokens after the last one are padding. None: a row is one sequence."""
        return None

    def example(self, rows: int, seq_len: int) -> Tensor:
        """Zeros with the shape and type of the inputs of `batch`, on torch's default device."""
        return torch.zeros(rows, seq_len, dtype=torch.long)

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes if `batch` returns other data for the same arguments."""


def draws(*key: str | int) -> torch.Generator:
    """A CPU generator seeded by `key`: the same key gives the same random numbers in any process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def short_hash(content: bytes | memoryview) -> str:
    """16 hexadecimal digits that identify `content`."""
    return hashlib.sha256(content).hexdigest()[:16]
