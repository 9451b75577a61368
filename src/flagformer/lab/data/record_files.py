"""Records of .jsonl, .csv, .tsv and .parquet files and of data sets of the package `datasets`, one by one."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flagformer.lab.data.records import Record, records_of

SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
NEEDS = "`source: {}` needs a package: pip install 'flagformer[data]'"
ROWS = 1024  # read at once from a Parquet file or a data set
# Names of the splits of a data set -> the index of a split; -1 for both held-out splits.
NAMED = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, "==": operator.eq, ">": operator.gt,
    "<": operator.lt,
}  # fmt: skip
NOT_NULL = "not null"
Condition = str | int | float | bool | None | list[str | int | float | bool | None]


def files_of(path: Path, kind: str) -> list[Path]:
    """A file of this kind, or all in a folder, except hidden ones, in the order of their paths."""
    if not path.is_dir():
        files = [path]
    else:
        inside = ((one, one.relative_to(path)) for one in path.rglob("*"))
        files = sorted(one for one, name in inside if not any(part[0] == "." for part in name.parts))
    files = [one for one in files if one.suffix.lower() in SUFFIXES[kind] and one.is_file()]
    if not files:
        raise ValueError(
            f"`path` must be a file or a folder of files that end in {' or '.join(SUFFIXES[kind])}, but is "
            f"{path}"
        )
    return files


def content_files(path: Path, kind: str) -> list[Path]:
    """The files whose contents determine the records."""
    if kind != "dataset":
        return files_of(path, kind)
    return sorted(one for one in path.rglob("*") if one.is_file() and one.name[0] != ".")


def kept_records(
    path: Path, kind: str, fields: Sequence[str], conditions: Mapping[str, Condition]
) -> Iterator[tuple[int | None, Record]]:
    """The records that a `filter` leaves, with the index of the split that a data set assigns."""
    wanted = [*fields, *conditions]
    found: Iterable[tuple[int | None, Record]]
    if kind == "dataset":
        found = dataset_records(path, wanted)
    else:
        found = ((None, one) for file in files_of(path, kind) for one in records_in(file, kind, wanted))
    return ((split, one) for split, one in found if matches(one, conditions))


@functools.lru_cache(maxsize=8)
def keeping(conditions: str) -> Callable[[Record], bool] | None:
    """Whether a record fulfils the conditions of a `filter`, as JSON; None without conditions."""
    wanted: dict[str, Condition] = json.loads(conditions)
    return (lambda record: matches(record, wanted)) if wanted else None


def value_of(record: Record, key: str, field: str) -> Any:
    """The value of a field; ValueError, with the place and the setting `key`, if the record has none."""
    place, fields = record
    if field not in fields:
        known = ", ".join(f"`{name}`" for name in fields)
        raise ValueError(f"`{key}` must be a field of every record, but {place} has no `{field}`: {known}")
    return fields[field]


def text_of(record: Record, key: str, field: str) -> str:
    """The text of a field; ValueError, with the place, for another value."""
    value = value_of(record, key, field)
    if isinstance(value, str) and value:
        return value
    hint = f"; `filter: {{{field}: not null}}` leaves such records out" if value in (None, "") else ""
    raise ValueError(f"`{field}` must be text in every record, but {record[0]} holds {value!r:.40}{hint}")


def digest(content: bytes) -> bytes:
    """8 bytes that identify `content`."""
    return hashlib.blake2b(content, digest_size=8).digest()


def records_in(path: Path, kind: str, fields: Sequence[str]) -> Iterator[Record]:
    """The records of one file of `files_of`, with at least these fields.

    Raises:
        ValueError: the file is damaged, or has no such field; names the file and the line or row.
    """
    if kind == "parquet":
        yield from _parquet(path, fields)
        return
    for line, record in records_of(path):
        yield f"line {line:,} of {path}", record


def _parquet(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(NEEDS.format("parquet")) from None
    try:
        with pq.ParquetFile(path) as file:
            check_fields(path, file.schema_arrow.names, fields)
            first = 1
            for batch in file.iter_batches(ROWS, columns=list(dict.fromkeys(fields))):
                for number, record in enumerate(batch.to_pylist(), first):
                    yield f"row {number:,} of {path}", record
                first += len(batch)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"`path` must be a Parquet file, but {path} cannot be read: {text}") from None


def dataset_records(path: Path, fields: Sequence[str]) -> Iterator[tuple[int | None, Record]]:
    """The records of a data set that `save_to_disk` wrote, with the index of their split, as in `NAMED`; None
    for a data set without splits."""
    try:
        import datasets
    except ImportError:
        raise ValueError(NEEDS.format("dataset")) from None
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # the package and pyarrow raise many classes for damaged files
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            "`path` must be a folder that `save_to_disk` of the package `datasets` wrote, but "
            f"{path} cannot be read: {text}"
        ) from None
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    unknown = sorted(set(parts) - {*NAMED, ""})
    if unknown:
        raise ValueError(
            f"the splits of {path} must be called train, validation or test, but one is `{unknown[0]}`; give "
            "the folder of one split"
        )
    for name, part in parts.items():
        where = f"{path / name}" if name else str(path)
        check_fields(Path(where), part.column_names, fields)
        columns = part.select_columns(list(dict.fromkeys(fields))).with_format("arrow")
        first = 1
        for table in columns.iter(ROWS):
            for number, record in enumerate(table.to_pylist(), first):
                yield (NAMED[name] if name else None), (f"row {number:,} of {where}", record)
            first += len(table)


def check_fields(path: Path, names: Sequence[str], fields: Sequence[str]) -> None:
    """Raise ValueError for a field that is not one of the names."""
    for field in fields:
        if field not in names:
            known = ", ".join(f"`{name}`" for name in names) or "none"
            raise ValueError(f"`{field}` must be a field of {path}, but its fields are {known}")


def matches(record: Record, conditions: Mapping[str, Condition]) -> bool:
    """Whether a record fulfils all conditions of a `filter`.

    Raises:
        ValueError: the record has no such field, or no number that a condition compares.
    """
    place, fields = record
    for name, condition in conditions.items():
        if name not in fields:
            known = ", ".join(f"`{one}`" for one in fields)
            raise ValueError(
                f"`filter` must name fields of the records, but {place} has no `{name}`: {known}"
            )
        if not _fulfils(fields[name], condition, f"`{name}` in {place}"):
            return False
    return True


def _fulfils(value: Any, condition: Condition, what: str) -> bool:
    if isinstance(condition, list):
        return any(_equal(value, one) for one in condition)
    if condition == NOT_NULL:
        return value is not None and value != ""
    sign = next(
        (sign for sign in COMPARED if isinstance(condition, str) and condition.startswith(sign)), None
    )
    if sign is None or not isinstance(condition, str):
        return _equal(value, condition)
    limit = condition[len(sign) :].strip()
    if sign in ("==", "!="):
        return _equal(value, limit) == (sign == "==")
    if value is None:
        return False
    try:
        return COMPARED[sign](float(value), float(limit))
    except (TypeError, ValueError):
        raise ValueError(
            f"`filter` compares numbers (`{condition}`), but {what} is {value!r:.40}; use a value or a list"
        ) from None


def _equal(value: Any, wanted: Any) -> bool:
    """Whether they are equal, or are written alike: the values of a .csv file are text."""
    return value == wanted or (value is not None and str(value).lower() == str(wanted).lower())
