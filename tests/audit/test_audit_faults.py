"""Every planted fault is found by the right check, at the right position, and by no unrelated one."""

from __future__ import annotations

import pytest
from faulty_models import CASES, Case

from flagformer.audit import AuditFailed, audit
from flagformer.audit.checks.every import NAMES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model.__name__)
def test_the_fault_is_found_where_it_is(case: Case) -> None:
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
    """A check that no fault can fail would be no check."""
    assert {case.check for case in CASES} == set(NAMES)
