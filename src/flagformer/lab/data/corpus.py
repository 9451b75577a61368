"""Token ids on disk, with documents: packing, epochs and splits."""

from __future__ import annotations

import functools
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, Source, Split
from flagformer.lab.data.opened import opened_once
from flagformer.lab.data.order import Order, rows_of_batch
from flagformer.lab.data.packing import Packing, RowTable, read_ranges, row_table
from flagformer.lab.data.token_store import Collection

NO_DOCUMENTS = (
    "`{}: {}` needs documents, but {} has none; {}, or use `packing: windows` and `split_by: position`"
)


class Corpus(Source):
    """Base of sources of token ids on disk. Subclasses open the files.

    The files must not change while they are in use.
    """

    metric: ClassVar[str] = (
        "every token given those before it in its row, of its document in packed and padded rows; "
        "accuracy: the share predicted right"
    )

    document_hint: ClassVar[str] = "give files with documents"

    path: Path = Field(description="A file or a folder; a relative path starts at the working directory.")
    packing: Packing = Field(
        default="windows",
        description="Rows of tokens: windows across documents; whole documents, as many as fit, without "
        "attention between them; or one document a row and padding.",
    )
    order: Order = Field(
        default="epochs",
        description="Rows in training: every row once in each epoch, in an order of its own; or rows drawn "
        "with replacement, windows from any token on.",
    )
    split_by: Literal["files", "position", "hash"] | None = Field(
        default=None,
        description="Splits by names of files or folders (train, val, test), by position (90, 5 and 5 %), or "
        "by the hash of a document, so that equal documents are in one split; default: files where their "
        "names say so, otherwise position.",
    )

    @abstractmethod
    def open(self) -> Collection:
        """Open all files. ValueError or OSError, with the file and the row, if one cannot be read."""

    @property
    def usual_split(self) -> str:
        """The rule of the splits of files whose names say none."""
        return "position"

    @property
    def chance(self) -> float | None:
        return None

    @property
    def is_bytes(self) -> bool:
        try:
            return self._opened().sizes is not None
        except (OSError, ValueError):  # a report needs only results; the files may be missing
            return False

    def check(self, split: Split, seq_len: int) -> None:
        table = self._rows(split, seq_len)
        if not table.count:
            tokens = self._spans(split).total
            raise ValueError(
                f"the {split} part of {self.path} has no row of {seq_len} tokens: it holds {tokens:,}; use "
                "more text, a smaller length, or another `split_by`"
            )
        for index in {0, table.count // 2, table.count - 1}:
            self._refuse_ids(table.row(index))

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Training rows are those of `order`. A held-out batch has consecutive rows; batches are spread over
        the split."""
        table = self._rows(split, seq_len)
        which = self._which(table, split, step, seed, batch_size, seq_len)
        starts = table.first_tokens(which)
        if starts is None:
            inputs, targets = self._assembled([table.row(int(index)) for index in which], seq_len)
        else:
            tokens = self._opened().ids.read_rows(starts, seq_len + 1)
            inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        if inputs.min() < 0 or max(inputs.max(), targets.max()) >= self.num_tokens:
            for index in which:
                self._refuse_ids(table.row(int(index)))
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    @property
    def is_packed(self) -> bool:
        return self.packing != "windows"

    def sequence_lengths(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> Tensor | None:
        if not self.is_packed:
            return None
        rows = self._batch_rows(split, step, seed, batch_size, seq_len)
        lengths = [torch.tensor([ranges[0][1] - 1 for ranges in row]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)

    def target_bytes(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> int:
        sizes = self._opened().sizes
        if sizes is None:
            return super().target_bytes(split, step, seed, batch_size, seq_len)
        rows = self._batch_rows(split, step, seed, batch_size, seq_len)
        return int(sum(read_ranges(sizes, ranges)[1:].sum() for row in rows for ranges in row))

    def bytes_per_token(self, split: Split) -> float | None:
        sizes, spans = self._opened().sizes, self._spans(split)
        if sizes is None:
            return None
        read = sum(int(sizes.read(int(start), int(count)).sum()) for start, count in _nonempty(spans))
        return read / max(1, spans.total)

    def _assembled(self, rows: list[Any], seq_len: int) -> tuple[Any, Any]:
        """Inputs and targets of rows, int64 [B, T], padded by 0 and `IGNORE`."""
        store = self._opened().ids
        inputs = np.zeros((len(rows), seq_len), dtype=np.int64)
        targets = np.full((len(rows), seq_len), IGNORE, dtype=np.int64)
        for number, row in enumerate(rows):
            at = 0
            for ranges in row:
                ids = read_ranges(store, ranges)
                end = at + len(ids) - 1
                inputs[number, at:end], targets[number, at:end] = ids[:-1], ids[1:]
                at = end
        return inputs, targets

    def _refuse_ids(self, row: Any) -> None:
        """Raise ValueError for ids outside of the vocabulary in a row."""
        for ranges in row:
            for start, count in ranges:
                self._opened().ids.refuse(start, count, self.num_tokens)

    def _batch_rows(self, split: Split, step: int, seed: int, batch_size: int, seq_len: int) -> list[Any]:
        table = self._rows(split, seq_len)
        which = self._which(table, split, step, seed, batch_size, seq_len)
        return [table.row(int(index)) for index in which]

    def _which(
        self, table: RowTable, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> Any:
        """The indices of a batch's rows, int64 [B]."""
        if not table.count:
            self.check(split, seq_len)
        return rows_of_batch(table.count, split, step, seed, batch_size, self.order)

    def _rows(self, split: Split, seq_len: int) -> RowTable:
        stride = 1 if split == "train" and self.order == "random" else seq_len
        return _table(self._opened(), split, self._split_by(), self.packing, seq_len, stride)

    def _spans(self, split: Split) -> Any:
        return self._opened().split(split, self._split_by())

    def _split_by(self) -> str:
        """The rule of the splits; ValueError if the files do not support it or the packing."""
        opened = self._opened()
        by = self.split_by or (self.usual_split if opened.files is None else "files")
        if by == "files" and opened.files is None:
            raise ValueError(
                "`split_by: files` needs names of files or folders with the words train and val or test, but "
                f"{self.path} has none; use `split_by: position`"
            )
        if opened.borders is None:
            for name, value in (("packing", self.packing), ("split_by", by)):
                if value in ("documents", "padded", "hash"):
                    raise ValueError(NO_DOCUMENTS.format(name, value, self.path, self.document_hint))
        return by

    def _opened(self) -> Collection:
        """The files, opened once in a process, and again if size or time of `path` change."""
        found: Collection = opened_once(self, [self.path], self.open)
        return found


def _nonempty(spans: Any) -> Any:
    return ((start, count) for start, count in zip(spans.starts, spans.lengths) if count)


@functools.lru_cache(maxsize=8)
def _table(
    collection: Collection, split: Split, by: str, packing: Packing, seq_len: int, stride: int
) -> RowTable:
    return row_table(packing, collection.split(split, by), seq_len, stride)
