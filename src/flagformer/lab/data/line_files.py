"""Two files of which equal lines belong together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from flagformer.lab.data.file import bytes_of
from flagformer.lab.data.records import utf8_lines


def paired_lines(path: Path, other: Path) -> Iterator[tuple[str, str]]:
    """The lines of both files, without their ends.

    Raises:
        ValueError: a file is not text, a line is empty or not UTF-8, or one file has more lines; names the
            file and the line.
    """
    for one in (path, other):
        bytes_of(one)
    for number, pair in enumerate(itertools.zip_longest(utf8_lines(path), utf8_lines(other)), 1):
        for file, line in zip((path, other), pair):
            if line is None:
                raise ValueError(
                    f"`target_path` must have as many lines as `path`, but {file} ends before line {number:,}"
                )
            if not line.strip():
                raise ValueError(
                    f"{file}:{number} must be a text, but is empty; remove this line from both files"
                )
        yield pair[0].rstrip("\r\n"), pair[1].rstrip("\r\n")
