"""Errors of a study file, each with its line and advice, reported together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SHOWN_MISTAKES = 16
LONGEST_MESSAGE = 300


@dataclass(frozen=True, order=True)
class ConfigError:
    """One error of a study file; `location` is `FILE:LINE`, or the override as typed."""

    line: int
    location: str
    message: str

    def __str__(self) -> str:
        message = self.message
        if len(message) > LONGEST_MESSAGE:
            message = message[: LONGEST_MESSAGE - 4] + " ..."
        return f"{self.location}: {message}"


class StudyFileError(ValueError):
    """A study file that cannot be run; `.mistakes` has all errors, `str()` at most one screen of them."""

    def __init__(self, mistakes: Iterable[ConfigError]) -> None:
        self.mistakes = tuple(sorted(set(mistakes)))
        lines = [str(mistake) for mistake in self.mistakes[:SHOWN_MISTAKES]]
        hidden = len(self.mistakes) - len(lines)
        if hidden > 0:
            lines.append(f"... and {hidden} more")
        super().__init__("\n".join(lines))


def repr_short(value: object) -> str:
    """The value as the user wrote it, shortened to 60 characters."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:56] + " ..."


def key_of(message: str) -> str:
    """The key between backticks with which a message starts; the whole message if it does not."""
    return message.removeprefix("`").partition("`")[0]
