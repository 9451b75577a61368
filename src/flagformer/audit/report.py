"""The report of an audit, also as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flagformer.audit.check_result import FAILED, NOT_APPLICABLE, CheckResult

WIDTH = 110
HEADINGS = ("check", "result", "max error", "tolerance", "position", "details")
MARKS = {FAILED: "FAILED", NOT_APPLICABLE: "n/a"}


class AuditFailed(RuntimeError):
    """Raised by `AuditReport.raise_if_failed`; `report` is the full report."""

    def __init__(self, report: AuditReport) -> None:
        self.report = report
        super().__init__(str(report))


@dataclass(frozen=True)
class AuditReport:
    """The results of all checks, in the order of execution; `str(report)` is a table."""

    subject: str
    results: tuple[CheckResult, ...] = field(default=())
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether no check failed and at least one passed."""
        return not self.failures and any(result.passed for result in self.results)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.failed)

    def __getitem__(self, check: str) -> CheckResult:
        for result in self.results:
            if result.check == check:
                return result
        known = ", ".join(result.check for result in self.results)
        raise KeyError(f"no check named {check!r} in this report; it has {known}")

    def __iter__(self) -> Iterator[CheckResult]:
        return iter(self.results)

    def __str__(self) -> str:
        return as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "subject": self.subject,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "results": [result.to_dict() for result in self.results],
        }

    def raise_if_failed(self) -> None:
        """Raise AuditFailed, whose message is the table, unless the audit passed."""
        if not self.passed:
            raise AuditFailed(self)


def as_text(report: AuditReport) -> str:
    """A summary line, and one or more lines for each check."""
    rows = [cells(result) for result in report.results]
    widths = [max(len(row[i]) for row in [HEADINGS, *rows]) for i in range(5)]
    width_left = max(30, WIDTH - sum(widths) - 2 * 5)
    lines = [summary_of(report), ""]
    for row in [HEADINGS, *rows]:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:5], widths))
        text = textwrap.wrap(row[5], width_left) or [""]
        lines.append(f"{left}  {text[0]}".rstrip())
        lines += [" " * (len(left) + 2) + more for more in text[1:]]
    return "\n".join([*lines, "", *reasons(report)]).rstrip()


def reasons(report: AuditReport) -> list[str]:
    """An explanation of each tolerance in the report."""
    reasons = {r.tolerance: r.tolerance_reason for r in report.results if r.tolerance is not None}
    return [
        f"tolerance {number(value)} (relative to the largest logit): {reason}"
        for value, reason in reasons.items()
    ]


def summary_of(report: AuditReport) -> str:
    counts = {True: "passed", False: f"FAILED {len(report.failures)} of {len(report.results)} checks"}
    skipped = sum(result.status == NOT_APPLICABLE for result in report.results)
    not_applicable = f", {skipped} not applicable" if skipped else ""
    return f"audit of {report.subject}: {counts[report.passed]}{not_applicable}, {report.seconds:.1f} s"


def cells(result: CheckResult) -> tuple[str, str, str, str, str, str]:
    """The six columns of one result."""
    words = result.words
    if result.failed:
        if result.flag:
            words += f"; likely at fault: {result.flag}"
        elif result.flag_words:
            words += f"; {result.flag_words}"
    return (
        result.title,
        MARKS.get(result.status, result.status),
        number(result.deviation),
        number(result.tolerance),
        "" if result.position is None else str(result.position),
        words,
    )


def number(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"
