"""The cache directory, and hashes of large files that are remembered in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CACHE = "FLAGFORMER_CACHE"
LARGE = 1 << 24  # bytes of files whose hash is remembered on disk


def cache_directory() -> Path:
    """The directory of downloads and encoded texts."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "flagformer")


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Raise ValueError for an OSError of files at a path in the cache."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"`{CACHE}` must be a directory that can be written, but {error.filename or path} cannot be: "
            f"{error.strerror}"
        ) from error


def remembered(name: str, files: Sequence[Path], make: Callable[[], str]) -> str:
    """`make()`, a hash of this name of the contents of some files, computed once on this machine for large
    files.

    Inode, size, and times of change, which no program can set, are those of the known contents.
    """
    states = [path.stat() for path in files]
    if sum(state.st_size for state in states) < LARGE:
        return make()
    stamps = [
        (str(p.resolve()), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in zip(files, states)
    ]
    path = cache_directory() / "hashes" / hashlib.sha256(repr((name, stamps)).encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):
        known = path.read_text()
        if known:
            return known
    found = make()
    with contextlib.suppress(OSError):  # without a directory to write it is computed again
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
        partial.write_text(found)
        partial.replace(path)
    return found


def hash_of_files(files: Sequence[Path]) -> str:
    """A hash of the contents and the order of files."""
    return remembered("files", files, lambda: _hash_of_files(files))


def _hash_of_files(files: Sequence[Path]) -> str:
    state = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()
