"""A lock between processes, and work that one of them does for all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
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


def made_once(base: Path, lock: Path, is_there: Callable[[], bool], make: Callable[[], None]) -> None:
    """Call `make()` in the first process that needs its result; others wait. What killed processes left,
    files or folders `base.*.partial`, is removed.

    Args:
        is_there: whether the result is complete.
    """
    if is_there():
        return
    base.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(lock) as locked:
        if locked:
            for partial in base.parent.glob(f"{base.name}.*.partial"):
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink()
        if not is_there():  # another process may have made it
            make()
