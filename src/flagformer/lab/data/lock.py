"""A lock between processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Wait for the lock on the file `path` and hold it; the file is created and remains. The system releases
    the lock when the process ends.

    Yields whether the lock is held: some systems and network file systems do not support it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked
