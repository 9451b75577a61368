"""One process at a time, for as long as it lives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Waits until no other process holds the file `path`, which is made and stays. The system frees it when
    its process ends, however it ends.

    Yields whether it is held: some systems and network file systems have no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with path.open("ab") as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            held = False
        yield held
