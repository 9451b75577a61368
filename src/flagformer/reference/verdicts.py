"""What every pair of choices does: it works, or is refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from flagformer.flags import FlagError
from flagformer.reference.selectors import Choice, pairs, settings
from flagformer.wrappers.build import check


@dataclass(frozen=True)
class Verdict:
    """Two choices, and why they are refused together; no reason: they work."""

    first: Choice
    second: Choice
    reason: str = ""


@cache
def verdicts() -> tuple[Verdict, ...]:
    """One for each pair, found by building a small model on the meta device."""
    return tuple(Verdict(first, second, _reason(first, second)) for first, second in pairs())


def _reason(*chosen: Choice) -> str:
    try:
        check(settings(*chosen))
    except FlagError as error:
        return " ".join(finding.message for finding in error.findings)
    return ""
