"""Any file or folder of text, as bytes."""

import functools
import json
import mmap
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_serializer
from torch import Tensor

from flagformer.lab.data import Split, short_hash
from flagformer.lab.data.cache import remembered
from flagformer.lab.data.formats import refuse_binary
from flagformer.lab.data.record_files import Condition, keeping
from flagformer.lab.data.records import fields_of, is_table, read_field
from flagformer.lab.data.text import Text

EDGES: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.9),
    "validation": (0.9, 0.95),
    "test": (0.95, 1.0),
}
Stamp = tuple[tuple[str, int, int], ...]
FIELD = "The field with the text, of a .jsonl, .csv or .tsv file."
FILTER = "Fields of records and the values to keep, as in `source: jsonl`."


class TextFile(Text):
    """Bytes of the file at `path`, or of all files in a folder and its subfolders, except hidden ones, in the
    order of their paths: the first 90 % for training, the next 5 % for validation, the last 5 % for test.

    A file is memory-mapped, so it may be larger than memory; it must not shrink while it is in use. A folder,
    and `field` of a .jsonl, .csv or .tsv file, are read into memory. Files without text (compressed, Parquet,
    safetensors, arrays, UTF-16) are refused.
    """

    source: Literal["file"]
    path: Path = Field(description="A file or a folder; a relative path starts at the working directory.")
    field: str | None = Field(default=None, description=FIELD)
    filter: dict[str, Condition] = Field(default={}, description=FILTER)

    @model_serializer(mode="wrap")
    def _without_no_filter(self, dump: Any) -> dict[str, Any]:
        """Without conditions, settings are those of earlier versions."""
        return {key: value for key, value in dump(self).items() if key != "filter" or value}

    @property
    def label(self) -> str:
        return str(self.path)

    def content(self, split: Split) -> Tensor:
        content = bytes_of(self.path, self.field, json.dumps(self.filter))
        low, high = EDGES[split]
        return content[int(low * len(content)) : int(high * len(content))]

    def fingerprint(self) -> str:
        return content_hash(self.path, self.field, json.dumps(self.filter))


def bytes_of(path: Path, field: str | None = None, conditions: str = "{}") -> Tensor:
    """The bytes of a file, of its `field` in records that fulfil all conditions (JSON), or of the files of a
    folder, uint8 [N].

    Raises:
        ValueError: the path does not exist, is empty, or is not text.
    """
    if field is None and conditions != "{}":
        raise ValueError(f"`filter` needs the `field` with the text of {path}, but `field` is not set")
    try:
        state = path.stat()
        if path.is_dir():
            _refuse_field(path, field)
            return _read_folder(path, _stamp(path))
        if not path.is_file():
            raise ValueError(f"`path` must be a regular file, but {path} is a device, a pipe or a socket")
        if not state.st_size:
            raise ValueError(f"`path` must be a file with text in it, but {path} is empty")
        if not is_table(path):
            _refuse_field(path, field)
            return _map(path, state.st_size, state.st_mtime_ns)
        _map(path, state.st_size, state.st_mtime_ns)  # raises an error if it is not text
        if field is None:
            names = ", ".join(f"`{name}`" for name in fields_of(path)) or "none"
            raise ValueError(
                f"`field` must name the field of {path} that holds the text; its fields are {names}. "
                "To train on the file as it is, give it a name that ends in .txt"
            )
        return read_field(path, field, state.st_size, state.st_mtime_ns, keeping(conditions))
    except FileNotFoundError as error:
        raise ValueError(
            f"`path` must be a file, but {path} is not there (seen from {Path.cwd()})"
        ) from error
    except OSError as error:
        raise ValueError(
            f"`path` must be a file that can be read, but {path} cannot: {error.strerror}"
        ) from error


def content_hash(path: Path, field: str | None = None, conditions: str = "{}") -> str:
    """A short hash of `bytes_of`, computed once for each content in a process."""
    bytes_of(path, field, conditions)  # its errors name the path
    return _hashed(path, field, conditions, _stamp(path))


def _refuse_field(path: Path, field: str | None) -> None:
    if field is not None:
        raise ValueError(
            f"`field` must be left out unless `path` is a .jsonl, .csv or .tsv file, but it is {path}"
        )


@functools.lru_cache(maxsize=2)
def _map(path: Path, size: int, modified: int) -> Tensor:
    """The file's bytes; size and time are arguments so that a changed file is mapped again."""
    with path.open("rb") as file:
        # torch does not accept read-only memory; a private copy-on-write map is as cheap and never written
        content = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    refuse_binary(path, content)
    return content


@functools.lru_cache(maxsize=4)
def _hashed(path: Path, field: str | None, conditions: str, stamp: Stamp) -> str:
    files = [Path(name) for name, _, _ in stamp]
    name = f"text {field}" if conditions == "{}" else f"text {field} {conditions}"
    return remembered(name, files, lambda: short_hash(bytes_of(path, field, conditions).numpy().data))


def _stamp(folder: Path) -> Stamp:
    """Name, size and time of a file, or of every file of a folder without hidden ones, sorted by path."""
    if not folder.is_dir():
        return ((str(folder), folder.stat().st_size, folder.stat().st_mtime_ns),)
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@functools.lru_cache(maxsize=2)
def _read_folder(folder: Path, stamp: Stamp) -> Tensor:
    content = bytearray()
    for name, _, _ in stamp:
        part = bytearray(Path(name).read_bytes())
        if part:
            refuse_binary(Path(name), torch.frombuffer(part, dtype=torch.uint8))
        content += part
    if not content:
        raise ValueError(f"`path` must be a folder with text in it, but no file in {folder} holds any")
    return torch.frombuffer(content, dtype=torch.uint8)
