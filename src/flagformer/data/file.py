"""Any file or folder of text, as bytes."""

import functools
import mmap
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.data import Split, short_hash
from flagformer.data.text import Text

EDGES: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.9),
    "validation": (0.9, 0.95),
    "test": (0.95, 1.0),
}


class TextFile(Text):
    """Bytes of the file at `path`, or of all files in a folder and the folders in it, in order of their
    paths, hidden ones left out: the first 90 % to train on, the next 5 % for validation, the last 5 % for
    test.

    A file is mapped, not copied: its size is not bounded by memory. It must not shrink while it is in use. A
    folder is read into memory.
    """

    source: Literal["file"]
    path: Path = Field(description="A file or a folder; a relative path starts at the working directory.")

    @property
    def place(self) -> str:
        return str(self.path)

    def content(self, split: Split) -> Tensor:
        content = bytes_of(self.path)
        low, high = EDGES[split]
        return content[int(low * len(content)) : int(high * len(content))]

    def fingerprint(self) -> str:
        return short_hash(bytes_of(self.path).numpy().data)


def bytes_of(path: Path) -> Tensor:
    """The bytes of a file or of a folder's files, uint8 [N]; ValueError names the path where there are
    none."""
    try:
        state = path.stat()
        if path.is_dir():
            return _read_folder(path, _stamp(path))
        if not path.is_file():
            raise ValueError(f"`path` must be a regular file, but {path} is a device, a pipe or a socket")
        if not state.st_size:
            raise ValueError(f"`path` must be a file with text in it, but {path} is empty")
        return _map(path, state.st_size, state.st_mtime_ns)
    except FileNotFoundError as error:
        raise ValueError(
            f"`path` must be a file, but {path} is not there (seen from {Path.cwd()})"
        ) from error
    except OSError as error:
        raise ValueError(
            f"`path` must be a file that can be read, but {path} cannot: {error.strerror}"
        ) from error


@functools.lru_cache(maxsize=2)
def _map(path: Path, size: int, modified: int) -> Tensor:
    """The file's bytes; size and time are there so that a changed file is mapped anew."""
    with path.open("rb") as file:
        # torch refuses read-only memory; a private copy-on-write map is as cheap and is never written to
        return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file that counts, in an order that no file system decides."""
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@functools.lru_cache(maxsize=2)
def _read_folder(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> Tensor:
    content = b"".join(Path(name).read_bytes() for name, _, _ in stamp)
    if not content:
        raise ValueError(f"`path` must be a folder with text in it, but no file in {folder} holds any")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
