"""log.jsonl: one line per optimizer step, truncated to the checkpoint's step when a run resumes."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from flagformer.lab.train.files import os_error_context


class Log:
    """An open log. The first `lines` steps are kept, later ones are dropped, as they are trained again.

    Lines are written unbuffered, so that a killed process loses none; `sync` writes them to the disk.
    """

    def __init__(self, path: Path, lines: int = 0) -> None:
        self.path = path
        kept = _end_of_line(path, lines) if lines else 0
        with os_error_context(path):
            self.file = path.open("ab", buffering=0)
            if os.fstat(self.file.fileno()).st_size > kept:
                self.file.truncate(kept)

    def write(self, line: dict[str, Any]) -> None:
        """Append one step; ValueError for NaN and infinity, which are invalid JSON."""
        with os_error_context(self.path):
            left = json.dumps(line, allow_nan=False).encode() + b"\n"
            # on a nearly full disk a write may be partial; only the next one raises
            while left:
                left = left[self.file.write(left) :]

    def sync(self) -> None:
        """Sync all lines to the disk."""
        with os_error_context(self.path):
            os.fsync(self.file.fileno())

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a log, also while it is being written; ValueError with file and line if a line is
    not a step.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_step(path, number, line) for number, line in enumerate(lines, start=1)]


def _end_of_line(path: Path, lines: int) -> int:
    """The byte offset of the end of line `lines`, after validating all lines up to it."""
    content = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    if len(content) <= lines:
        raise ValueError(
            f"{path} is damaged: it has {len(content) - 1} steps, but its checkpoint has {lines}; "
            "delete the run directory to start again"
        )
    for number, line in enumerate(content[:lines], start=1):
        _step(path, number, line)
    return sum(len(line) + 1 for line in content[:lines])


def _step(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        step = json.loads(line)
        valid = isinstance(step, dict) and step.get("step") == number
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            f"{path}:{number} is damaged: it must be the JSON of step {number}; "
            "delete the run directory to start again"
        )
    return step
