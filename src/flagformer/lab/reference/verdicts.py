"""The verdict on every pair of choices: it works, or is refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from flagformer.flags import FlagError
from flagformer.lab.reference.selectors import Choice, pairs, settings
from flagformer.models.build import check


@dataclass(frozen=True)
class Verdict:
    """Two choices and the reason why they cannot be combined; empty if they can."""

    first: Choice
    second: Choice
    reason: str = ""


@cache
def verdicts() -> tuple[Verdict, ...]:
    """Return a verdict for each pair, from building a small model on the meta device."""
    return tuple(Verdict(first, second, _reason(first, second)) for first, second in pairs())


def _reason(*chosen: Choice) -> str:
    try:
        check(settings(*chosen))
    except FlagError as error:
        return " ".join(finding.message for finding in error.findings)
    return ""
