"""Any file of text, as bytes."""

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
    """Bytes of the file at `path`: the first 90 % to train on, the next 5 % for validation, the last 5 % for
    test.

    The file is mapped, not copied: its size is not bounded by memory. It must not shrink while it is in use.
    """

    source: Literal["file"]
    path: Path = Field(description="A file; a relative path starts at the working directory.")

    @property
    def place(self) -> str:
        return str(self.path)

    def content(self, split: Split) -> Tensor:
        content = _bytes_of(self.path)
        low, high = EDGES[split]
        return content[int(low * len(content)) : int(high * len(content))]

    def fingerprint(self) -> str:
        return short_hash(_bytes_of(self.path).numpy().data)


def _bytes_of(path: Path) -> Tensor:
    try:
        state = path.stat()
        if path.is_dir():
            raise ValueError(f"`path` must be a file, but {path} is a directory; name one file in it")
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
