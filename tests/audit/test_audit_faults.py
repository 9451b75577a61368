"""Every planted fault fails the right check at the right position, and no unrelated check."""

from __future__ import annotations

import pytest
from faulty_models import CASES, Case

from flagformer.audit import AuditFailed, audit
from flagformer.audit.checks.every import NAMES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model.__name__)
def test_the_fault_is_found_at_its_position(case: Case) -> None:
    report = audit(case.model())
    result = report[case.check]
    assert result.failed, str(report)
    assert result.position == case.position, str(report)
    assert case.words in result.words
    assert {r.check for r in report if r.failed} == {case.check} | case.along, str(report)
    assert not report.passed
    with pytest.raises(AuditFailed, match="FAILED"):
        report.raise_if_failed()


def test_every_check_fails_for_some_model() -> None:
    """Each check can fail."""
    assert {case.check for case in CASES} == set(NAMES)
