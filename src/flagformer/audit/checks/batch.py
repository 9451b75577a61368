"""A row's logits do not depend on the other rows of the batch."""

from __future__ import annotations

from flagformer.audit.check_result import CheckResult, judged
from flagformer.audit.subject import Subject


def batch(subject: Subject) -> CheckResult:
    """Compare each row in batches with other rows (almost bit-identical), then in a batch of one."""
    strict, rows = subject.same_shape(), subject.settings.rows
    for row in (0, rows - 1):
        others = subject.other_ids(subject.ids)
        others[row] = subject.ids[row]
        words = f"row {row} changes when the other rows of the batch change"
        strict.compare(subject.logits(others)[row], subject.reference[row], words)
    passed = "rows do not depend on each other"
    if strict.failed:
        return judged("batch", strict, passed)
    worst = subject.other_shape()
    for row in range(rows):
        words = f"row {row} alone differs from the same row in a batch of {rows}"
        worst.compare(subject.logits(subject.ids[row : row + 1])[0], subject.reference[row], words)
    return judged("batch", worst, passed)
