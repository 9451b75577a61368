"""Distinguish deliberate refusals of a model from crashes."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

REFUSALS = (NotImplementedError, ValueError, AssertionError)


def is_refusal(error: BaseException) -> bool:
    """Whether the error is a NotImplementedError, or a ValueError or AssertionError with a message that code
    outside torch raises explicitly."""
    if isinstance(error, NotImplementedError):
        return True
    if not isinstance(error, REFUSALS) or not str(error).strip():
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or frames[-1][0].f_globals.get("__name__", "").partition(".")[0] == "torch":
        return False
    frame, number = frames[-1]
    line = linecache.getline(frame.f_code.co_filename, number).strip()
    return line.startswith(("raise", "assert")) or not line


def one_line(error: BaseException) -> str:
    """The error in one line of at most 200 characters: `RuntimeError: the size of ...`."""
    text = traceback.format_exception_only(type(error), error)[-1].strip()
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:196] + " ..."


class Attempts:
    """Runs independent parts of a check; a refusal becomes a note, any other exception a crash."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.crashes: list[str] = []

    @contextmanager
    def of(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if is_refusal(error):
                self.notes.append(f"{doing} is refused: {one_line(error)}")
            else:
                self.crashes.append(f"{doing}: the model raises {one_line(error)}")
