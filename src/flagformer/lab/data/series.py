"""Series of numbers from files, for models of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import Form, Source, Split, short_hash
from flagformer.lab.data.cache import hash_of_files
from flagformer.lab.data.file import EDGES
from flagformer.lab.data.opened import opened_once
from flagformer.lab.data.order import Order, numbers_of_split, rows_of_batch
from flagformer.lab.data.series_files import read_series, series_files

MANY = 20  # series from which on splits are of whole series
CHUNK = 1 << 18  # rows that are summed at once


@dataclass(frozen=True, eq=False)
class Opened:
    """All series.

    Attributes:
        series: each [T, C], memory-mapped.
        mean, scale: fp32 [C], of the values for training.
    """

    series: list[Any]
    mean: Any
    scale: Any


class Series(Source):
    """Windows of series of numbers, for `model: continuous`: the target of each position is the value `ahead`
    rows later.

    A .csv or .tsv file is a series, with a value of each column in each row; a .npy file is one, [T] or
    [T, C], or many, [N, T, C]; a folder is all of its files and those of its subfolders, except hidden ones.
    Values are normalised by mean and standard deviation of each column in the training part. With 20 series
    or more, splits are of whole series, otherwise by time: the first 90 % of each series for training, the
    next 5 % for validation, the last 5 % for test. A row is [seq_len, C].
    """

    form: ClassVar[Form] = "vectors"
    metric: ClassVar[str] = (
        "values after normalisation; accuracy: the share of their mean square that predictions explain; "
        "chance: 0, the mean"
    )

    source: Literal["series"]
    path: Path = Field(description="A .csv, .tsv or .npy file, or a folder of them.")
    columns: tuple[str, ...] = Field(default=(), description="Columns of tables; default: all.")
    ahead: int = Field(default=1, ge=1, le=2**20, description="Rows from an input to its target.")
    normalise: bool = Field(default=True, description="Whether values are normalised.")
    order: Order = Field(
        default="epochs",
        description="Windows in training: every one once in each epoch, or drawn, from any row on.",
    )
    split_by: Literal["time", "series"] | None = Field(
        default=None, description="Splits by time or of whole series; default: by their number."
    )

    @property
    def model(self) -> str:
        return "continuous"

    @property
    def num_tokens(self) -> int:
        return int(self._opened().series[0].shape[1])

    @property
    def chance(self) -> float | None:
        return 0.0

    def example(self, rows: int, seq_len: int) -> Tensor:
        return torch.zeros(rows, seq_len, self.num_tokens)

    def check(self, split: Split, seq_len: int) -> None:
        if not self._ends(split, seq_len, 1)[-1]:
            longest = max(
                (high - low for _, low, high in self._spans(self._opened().series, split)), default=0
            )
            raise ValueError(
                f"the {split} part of {self.path} has no window of {seq_len} rows and {self.ahead} more: its "
                f"longest series has {longest:,}; use more rows, a smaller `seq_len`, or another `split_by`"
            )

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets, fp32 [batch_size, seq_len, C]."""
        found = self._opened()
        stride = 1 if split == "train" and self.order == "random" else seq_len
        ends = self._ends(split, seq_len, stride)
        if not ends[-1]:
            self.check(split, seq_len)
        spans = self._spans(found.series, split)
        rows = []
        for index in rows_of_batch(int(ends[-1]), split, step, seed, batch_size, self.order).tolist():
            which = int(np.searchsorted(ends, index, side="right"))
            number, low, _ = spans[which]
            start = low + stride * (index - (int(ends[which - 1]) if which else 0))
            rows.append(found.series[number][start : start + seq_len + self.ahead].astype(np.float32))
        values = torch.from_numpy((np.stack(rows) - found.mean) / found.scale)
        return values[:, :seq_len].contiguous(), values[:, self.ahead :].contiguous()

    def fingerprint(self) -> str:
        files = series_files(self.path)
        return short_hash(
            f"{self.model_dump_json(exclude={'path', 'seq_len', 'order'})} {hash_of_files(files)}".encode()
        )

    def open(self) -> Opened:
        """Open all files; ValueError, with the file and the row, if one cannot be read."""
        series: list[Any] = []
        for path in series_files(self.path):
            for one in read_series(path, self.columns):
                if series and one.shape[1] != series[0].shape[1]:
                    raise ValueError(
                        f"{path} must have {series[0].shape[1]} columns, as the files before it, but has "
                        f"{one.shape[1]}"
                    )
                series.append(one)
        width = series[0].shape[1]
        mean, scale = np.zeros(width, dtype=np.float32), np.ones(width, dtype=np.float32)
        if self.normalise:
            mean, scale = self._moments(series)
        return Opened(series, mean, scale)

    def _moments(self, series: list[Any]) -> tuple[Any, Any]:
        """Mean and standard deviation of the columns in training; 1 for a constant column."""
        count, sums, squares = 0, 0.0, 0.0
        spans = self._spans(series, "train")
        first = next((series[number][low] for number, low, high in spans if high > low), 0.0)
        offset = np.asarray(first, dtype=np.float64)  # of sums, which then round less
        for number, low, high in spans:
            for start in range(low, high, CHUNK):
                part = series[number][start : min(start + CHUNK, high)].astype(np.float64) - offset
                count, sums, squares = count + len(part), sums + part.sum(0), squares + (part**2).sum(0)
        mean = sums / max(1, count)
        scale = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0.0))
        return np.float32(mean + offset), np.float32(np.where(scale > 0, scale, 1.0))

    def _opened(self) -> Opened:
        found: Opened = opened_once(self, [self.path], self.open)
        return found

    def _spans(self, series: list[Any], split: Split) -> list[tuple[int, int, int]]:
        """Series, first row and last row plus one of the parts of a split."""
        by = self.split_by or ("series" if len(series) >= MANY else "time")
        if by == "series":
            return [(i, 0, len(series[i])) for i in numbers_of_split(split, len(series), "position").tolist()]
        low, high = EDGES[split]
        return [(i, int(low * len(one)), int(high * len(one))) for i, one in enumerate(series)]

    def _ends(self, split: Split, seq_len: int, stride: int) -> Any:
        """The sums of the numbers of windows over the parts of a split, int64 [N], at least one."""
        spans = self._spans(self._opened().series, split)
        counts = [max(0, (high - low - seq_len - self.ahead) // stride + 1) for _, low, high in spans]
        return np.cumsum(counts or [0])
