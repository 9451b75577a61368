"""The text of one field of a .jsonl, .csv or .tsv file."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SEPARATOR = "\n\n"  # between two records
TABLES = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
Record = tuple[str, Mapping[str, Any]]  # the place of a record in messages, and its fields
LONGEST_CELL = 1 << 30  # characters; the csv module's own limit is 131,072


def is_table(path: Path) -> bool:
    """Whether the file has records, by its suffix."""
    return path.suffix.lower() in TABLES or path.suffix.lower() in LINES


@functools.lru_cache(maxsize=2)
def read_field(
    path: Path, field: str, size: int, modified: int, keep: Callable[[Record], bool] | None = None
) -> Tensor:
    """The text of `field` of all records that `keep` accepts, uint8 [N], with a blank line between two
    records. Size and time are part of the cache key, so that a changed file is read again.

    Raises:
        ValueError: a line is not a record, or has no such field.
    """
    found = records_of(path)
    if keep is not None:
        found = ((line, one) for line, one in found if keep((f"line {line:,} of {path}", one)))
    texts = [_text_of(path, line, record, field) for line, record in found]
    content = SEPARATOR.join(texts).encode("utf-8", errors="replace")
    if not content:
        raise ValueError(f"`path` must be a file with text in it, but {path} has none in `{field}`")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def fields_of(path: Path) -> list[str]:
    """The fields of the first record; empty without records."""
    for _, record in records_of(path):
        return [str(name) for name in record]
    return []


def records_of(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Each record with its line number."""
    with _utf8(path), path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() in TABLES:
            csv.field_size_limit(LONGEST_CELL)
            table = csv.DictReader(file, delimiter=TABLES[path.suffix.lower()])
            try:
                for row in table:
                    if None in row:  # DictReader's key of further cells
                        cells = len(table.fieldnames or ()) + len(row[None])
                        raise ValueError(
                            f"{path}:{table.line_num} must have {len(table.fieldnames or ())} cells, as the "
                            f"first line, but has {cells}"
                        )
                    yield table.line_num, dict(row)
            except csv.Error as error:
                raise ValueError(f"{path}:{table.line_num} is no row of a table: {error}") from None
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number} is not valid JSON: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}:{number} must be an object with the field, but is {line.strip()[:40]}"
                )
            yield number, record


def utf8_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends; ValueError, with the line, if it is not UTF-8."""
    with _utf8(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        yield from file


@contextlib.contextmanager
def _utf8(path: Path) -> Iterator[None]:
    """Convert UnicodeDecodeError to ValueError with the line."""
    try:
        yield
    except UnicodeDecodeError as fault:
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            line = 1 + content.count(b"\n", 0, error.start)
            raise ValueError(
                f"{path}:{line} is not UTF-8 (byte {content[error.start]:#04x}); convert it (for Latin-1: "
                "iconv -f ISO-8859-1 -t UTF-8 FILE)"
            ) from None
        raise ValueError(f"{path} cannot be read: {fault}; it has changed while it was read") from None


def _text_of(path: Path, line: int, record: dict[str, object], field: str) -> str:
    text = record.get(field)
    if isinstance(text, str):
        return text
    if field not in record:
        names = ", ".join(f"`{name}`" for name in record)
        raise ValueError(
            f"`field` must be a field of {path}, but line {line} has no `{field}`; it has {names}"
        )
    raise ValueError(f"`field` must be text in every record, but line {line} of {path} holds {text!r:.40}")
