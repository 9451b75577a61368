"""FlagError: one error for a set of flags, with a line for each finding."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

# Words that do not change the meaning of a name.
FILLER_WORDS = {"use", "enable", "with", "num", "n"}


@dataclass(frozen=True)
class Finding:
    """One mistake: the flag as typed, and a sentence with the reason and the fix."""

    flag: str
    message: str
    is_unknown: bool = False  # no flag has this name; the other flags can still be resolved

    def __str__(self) -> str:
        return self.message


class FlagError(ValueError):
    """Invalid flags. `findings` holds each mistake; the message lists them all."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        lines = [f"- {finding}" for finding in self.findings]
        count = len(lines)
        title = "1 flag cannot be used:" if count == 1 else f"{count} flags cannot be used:"
        super().__init__("\n".join([title, *lines]))

    def __reduce__(self) -> tuple[type[FlagError], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)


class ErrorCollector:
    """Collects the findings of several calls, to raise them together."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def collect(self, make: Callable[[], Any]) -> Any:
        """Return `make()`; None if it raised FlagError, whose findings are collected."""
        try:
            return make()
        except FlagError as error:
            self.findings += error.findings
            return None

    def raise_all(self) -> None:
        if self.findings:
            raise FlagError(dict.fromkeys(self.findings))


def with_prefix(findings: Iterable[Finding], prefix: str, names: Collection[str]) -> list[Finding]:
    """Return the findings with `prefix` added to each of the flags `names`, as the user typed them."""

    def typed(match: re.Match[str]) -> str:
        return f"`{prefix}{match[1]}" if match[1] in names else match[0]

    return [
        replace(
            f,
            flag=prefix + f.flag if f.flag in names else f.flag,
            message=re.sub(r"`(\w+)", typed, f.message),
        )
        for f in findings
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean `x`?` for a misspelt name, else an empty string."""
    close = closest(name, known)
    return f"; did you mean `{close}`?" if close else ""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that `name` misspells, or an empty string.

    A misspelling consists of the same words with a letter or two wrong. A name with a different word is a
    different name, however similar the rest.
    """
    close = difflib.get_close_matches(name, list(known), n=5, cutoff=0.6)
    return next((other for other in close if _is_misspelling(name, other)), "")


def _is_misspelling(typed: str, known: str) -> bool:
    if difflib.SequenceMatcher(None, typed.replace("_", ""), known.replace("_", "")).ratio() >= 0.95:
        return True
    words, others = typed.split("_"), known.split("_")
    if len(words) == len(others) and all(map(_is_similar, words, others)):
        return True
    missing, extra = set(others) - set(words), set(words) - set(others)
    return len(missing) <= 1 and extra <= FILLER_WORDS


def _is_similar(word: str, other: str) -> bool:
    return word == other or difflib.SequenceMatcher(None, word, other).ratio() >= 0.75
