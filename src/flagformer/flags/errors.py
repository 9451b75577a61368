"""The one error of flags: every finding at once, a line each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

# Words that change nothing of what a name means.
FILLING = {"use", "enable", "with", "num", "n"}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the flag as typed, and a sentence that says why and what to do."""

    flag: str
    message: str
    is_unknown: bool = False  # no flag has this name; what the others mean is still known

    def __str__(self) -> str:
        return self.message


class FlagError(ValueError):
    """Flags that cannot be built. `findings` holds each mistake; the text shows them all."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        lines = [f"- {finding}" for finding in self.findings]
        count = len(lines)
        title = "1 flag cannot be used:" if count == 1 else f"{count} flags cannot be used:"
        super().__init__("\n".join([title, *lines]))

    def __reduce__(self) -> tuple[type[FlagError], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)


class ErrorCollector:
    """The findings of several attempts, raised together."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def collect(self, make: Callable[[], Any]) -> Any:
        """What `make` gives; None where it raised FlagError, whose findings are kept."""
        try:
            return make()
        except FlagError as error:
            self.findings += error.findings
            return None

    def raise_all(self) -> None:
        if self.findings:
            raise FlagError(dict.fromkeys(self.findings))


def with_prefix(findings: Iterable[Finding], prefix: str, names: Collection[str]) -> list[Finding]:
    """The findings with `prefix` before each of those flag names, as the user typed them."""

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
    """`; did you mean `x`?` for a misspelt name, or an empty string."""
    close = closest(name, known)
    return f"; did you mean `{close}`?" if close else ""


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` misspells, or an empty string.

    A misspelling has the words of the name that was meant, each with a letter or two wrong; a name with
    another word means something else, however alike the rest is.
    """
    close = difflib.get_close_matches(name, list(known), n=5, cutoff=0.6)
    return next((other for other in close if _is_misspelling(name, other)), "")


def _is_misspelling(typed: str, known: str) -> bool:
    if difflib.SequenceMatcher(None, typed.replace("_", ""), known.replace("_", "")).ratio() >= 0.95:
        return True
    words, others = typed.split("_"), known.split("_")
    if len(words) == len(others) and all(map(_is_alike, words, others)):
        return True
    left, extra = set(others) - set(words), set(words) - set(others)
    return len(left) <= 1 and extra <= FILLING


def _is_alike(word: str, other: str) -> bool:
    return word == other or difflib.SequenceMatcher(None, word, other).ratio() >= 0.75
