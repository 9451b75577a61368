"""Files that a source opens once in a process, and again if they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOST_OPEN = 16  # sources whose files are kept open
Stamp = tuple[tuple[int, int], ...]
# id -> source, sizes and times of its paths, and its files; the source is kept so that its id is its own
_KNOWN: dict[int, tuple[Any, Stamp, Any]] = {}


def opened_once(source: Any, paths: Sequence[Path], make: Callable[[], Any]) -> Any:
    """`make()`, computed again if size or time of a path changes.

    Raises:
        ValueError: a path cannot be read.
    """
    stamp = tuple(_stamp(path) for path in paths)
    known = _KNOWN.get(id(source))
    if known is None or known[0] is not source or known[1] != stamp:
        if len(_KNOWN) >= MOST_OPEN:
            _KNOWN.clear()
        known = _KNOWN[id(source)] = (source, stamp, make())
    return known[2]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(
            f"`path` must be a file or a folder that can be read, but {path} cannot: {error.strerror} (seen "
            f"from {Path.cwd()})"
        ) from error
    return state.st_size, state.st_mtime_ns
