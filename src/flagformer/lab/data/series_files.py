"""Series of numbers in .npy and .csv files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flagformer.lab.data.record_files import check_fields
from flagformer.lab.data.records import records_of

SUFFIXES = (".npy", ".csv", ".tsv")
CHUNK = 1 << 20  # values that are checked at once


def series_files(path: Path) -> list[Path]:
    """A file, or all files of a folder, except hidden ones, in the order of their paths."""
    files = sorted(one for one in path.rglob("*") if one.name[0] != ".") if path.is_dir() else [path]
    files = [one for one in files if one.suffix.lower() in SUFFIXES and one.is_file()]
    if not files:
        raise ValueError(f"`path` must hold series ({', '.join(SUFFIXES)}), but is {path}")
    return files


def read_series(path: Path, columns: Sequence[str]) -> list[Any]:
    """The series of one file, each [T, C] of numbers.

    Raises:
        ValueError: the file is damaged, or a value is no finite number; names the file and the row.
    """
    if path.suffix.lower() == ".npy":
        if columns:
            raise ValueError(f"`columns` must be left out for arrays, but {path} is one")
        return list(_arrays(path))
    return [_table(path, columns)]


def _arrays(path: Path) -> Iterator[Any]:
    try:
        found = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"`path` must be arrays of numbers, but {path} cannot be read: {error}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "uif" or found.ndim not in (1, 2, 3):
        kind = f"{getattr(found, 'dtype', 'no array')} of shape {list(getattr(found, 'shape', ()))}"
        raise ValueError(f"{path} must hold numbers of shape [T], [T, C] or [N, T, C], but is {kind}")
    whole = found[:, None] if found.ndim == 1 else found
    for number, one in enumerate(whole if found.ndim == 3 else [whole]):
        where = f"series {number:,}, " if found.ndim == 3 else ""
        step = max(1, CHUNK // max(1, one.shape[1]))
        for start in range(0, len(one), step):
            wrong = np.argwhere(~np.isfinite(one[start : start + step]))
            if len(wrong):
                row, column = (int(index) for index in wrong[0])
                value = one[start + row, column]
                raise ValueError(
                    f"{path} must hold finite numbers, but {where}row {start + row:,}, column {column} is "
                    f"{value}"
                )
        yield one


def _table(path: Path, columns: Sequence[str]) -> Any:
    rows: list[list[float]] = []
    chosen = list(columns)
    for line, record in records_of(path):
        if not rows:
            chosen = chosen or [str(name) for name in record]
            check_fields(path, [str(name) for name in record], chosen)
        rows.append([_number(record.get(name), name, f"line {line:,} of {path}") for name in chosen])
    if not rows:
        raise ValueError(f"`path` must be a series, but {path} has no row")
    return np.array(rows, dtype=np.float32)


def _number(value: object, name: str, place: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"`{name}` must be a finite number in every row, but {place} holds {value!r:.40}; name the "
            "columns of numbers in `columns`"
        )
    return number
