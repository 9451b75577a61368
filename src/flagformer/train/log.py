"""log.jsonl: one line per optimizer step, cut back to a checkpoint's step before a run goes on."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from flagformer.train.files import os_error_context


class Log:
    """An open log. `lines` steps are kept, later ones dropped: they will be trained again.

    A line reaches the system as it is written (a killed process loses none) and the disk with the next
    `sync`.
    """

    def __init__(self, path: Path, lines: int = 0) -> None:
        self.path = path
        kept = _end_of_line(path, lines) if lines else 0
        with os_error_context(path):
            self.file = path.open("ab", buffering=0)
            if os.fstat(self.file.fileno()).st_size > kept:
                self.file.truncate(kept)

    def write(self, line: dict[str, Any]) -> None:
        """Append one step. NaN and infinity, which are no JSON, are refused."""
        with os_error_context(self.path):
            left = json.dumps(line, allow_nan=False).encode() + b"\n"
            # the last room of a disk takes a part of a line; only the next write says that it is full
            while left:
                left = left[self.file.write(left) :]

    def sync(self) -> None:
        """Return when every line is on the disk."""
        with os_error_context(self.path):
            os.fsync(self.file.fileno())

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log, also of one that is being written; a line that is no step raises ValueError
    naming file and line.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_step(path, number, line) for number, line in enumerate(lines, start=1)]


def _end_of_line(path: Path, lines: int) -> int:
    """The byte after line `lines`, once every line up to there has been found to be the step it should be."""
    content = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    if len(content) <= lines:
        raise ValueError(
            f"{path} is damaged: it holds {len(content) - 1} steps, but its checkpoint has {lines}; "
            "delete the run directory to start again"
        )
    for number, line in enumerate(content[:lines], start=1):
        _step(path, number, line)
    return sum(len(line) + 1 for line in content[:lines])


def _step(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        step = json.loads(line)
        whole = isinstance(step, dict) and step.get("step") == number
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(
            f"{path}:{number} is damaged: it must be the JSON of step {number}; "
            "delete the run directory to start again"
        )
    return step
