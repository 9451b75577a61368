"""The result of one check."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flagformer.audit.attempts import Attempts
from flagformer.audit.max_error import MaxError

SHOWN = 2
PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: its name, for example `future_leak`.
        status: "passed", "failed" or "not applicable".
        words: a description of the comparison, of the fault, or of why the check does not apply.
        deviation: the largest error, relative to the largest logit; None if nothing was compared.
        tolerance: the deviation allowed; `tolerance_reason` explains it.
        position: the first sequence position with a fault.
        parameters: names of the parameters at fault.
        flag: the flag without which the check passes, as `name=value`; None if none was found or tried.
        flag_words: details about the flag at fault.
    """

    check: str
    status: str
    words: str = ""
    deviation: float | None = None
    tolerance: float | None = None
    tolerance_reason: str = ""
    position: int | None = None
    parameters: tuple[str, ...] = ()
    flag: str | None = None
    flag_words: str = ""

    @property
    def passed(self) -> bool:
        return self.status == PASSED

    @property
    def failed(self) -> bool:
        return self.status == FAILED

    @property
    def title(self) -> str:
        return self.check.replace("_", " ")

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values; an infinite deviation becomes the string "inf"."""
        values = dict(self.__dict__)
        values["parameters"] = list(self.parameters)
        if self.deviation is not None and not math.isfinite(self.deviation):
            values["deviation"] = "inf"
        return values


def judged(check: str, worst: MaxError, words: str, attempts: Attempts | None = None) -> CheckResult:
    """The result of comparisons: `words` and the notes on refusals if it passed, else all faults."""
    notes, crashes = (
        (_shorten(attempts.notes), _shorten(attempts.crashes)) if attempts is not None else ([], [])
    )
    if worst.compared == 0 and not crashes:
        return skipped(check, "; ".join(notes) or "nothing could be compared")
    faults = [worst.words] * worst.failed + crashes
    return CheckResult(
        check,
        FAILED if faults else PASSED,
        "; ".join(faults or [words, *notes]),
        deviation=worst.deviation if worst.compared else None,
        tolerance=worst.tolerance.value,
        tolerance_reason=worst.tolerance.reason,
        position=worst.position,
    )


def _shorten(texts: list[str]) -> list[str]:
    more = len(texts) - SHOWN
    return texts if more <= 0 else [*texts[:SHOWN], f"{more} more like this"]


def skipped(check: str, why: str) -> CheckResult:
    return CheckResult(check, NOT_APPLICABLE, why)


def must_be(
    check: str, holds: bool, words: str, *, position: int | None = None, parameters: tuple[str, ...] = ()
) -> CheckResult:
    """The result of a condition."""
    return CheckResult(check, PASSED if holds else FAILED, words, position=position, parameters=parameters)
