"""Reports as text, as plain values and as an error."""

from __future__ import annotations

import json
import math

import pytest
import torch
from audit_models import Bigram, TinyLM
from faulty_models import CacheForgetsPositions, Constant, NotANumberFromSevenOn

from flagformer.audit import AuditFailed, AuditReport, CheckResult, audit
from flagformer.audit.check_result import NOT_APPLICABLE, PASSED
from flagformer.audit.max_error import MaxError
from flagformer.audit.report import WIDTH
from flagformer.audit.tolerance import other_shape, same_shape


def test_a_report_without_a_passed_check_is_not_passed() -> None:
    skipped = CheckResult("cache", NOT_APPLICABLE, "no cache")
    assert not AuditReport("nothing", ()).passed
    assert not AuditReport("nothing", (skipped,)).passed
    assert AuditReport("something", (skipped, CheckResult("batch", PASSED))).passed
    assert not audit(Bigram(), checks=["packing"]).passed


def test_a_model_that_ignores_its_input_does_not_pass() -> None:
    """All comparisons pass for it: `sensitivity` is the check that fails."""
    report = audit(Constant())
    assert [r.check for r in report.failures] == ["sensitivity"]
    assert not report.passed


def test_the_text_has_result_deviation_tolerance_position_and_reason() -> None:
    report = audit(CacheForgetsPositions(), checks=["cache", "batch"])
    lines = str(report).splitlines()
    assert "CacheForgetsPositions" in lines[0]
    assert "FAILED 1 of 2 checks" in lines[0]
    row = next(line for line in lines if line.startswith("cache"))
    assert row.split()[:2] == ["cache", "FAILED"]
    assert row.split()[3:5] == ["1.2e-05", "1"]
    assert "100 rounding errors of float32" in str(report)
    assert max(map(len, lines)) <= WIDTH + 10, "the reasons below the table may be slightly longer"


def test_plain_values_round_trip_through_json() -> None:
    for model in (TinyLM(), NotANumberFromSevenOn()):
        report = audit(model)
        values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert values["passed"] == report.passed
        assert [r["check"] for r in values["results"]] == [r.check for r in report]


def test_an_infinite_deviation_is_a_string_in_json() -> None:
    assert CheckResult("cache", "failed", deviation=math.inf).to_dict()["deviation"] == "inf"


def test_the_raised_error_shows_the_table_and_keeps_the_report() -> None:
    report = audit(CacheForgetsPositions(), checks=["cache"])
    with pytest.raises(AuditFailed) as caught:
        report.raise_if_failed()
    assert str(caught.value) == str(report)
    assert caught.value.report is report
    audit(TinyLM(), checks=["cache"]).raise_if_failed()


def test_an_unknown_check_is_a_key_error_that_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="it has batch"):
        audit(TinyLM(), checks=["batch"])["no_such_check"]


def test_the_earliest_fault_and_the_largest_deviation_are_kept() -> None:
    wanted = torch.zeros(2, 6, 3)
    worst = MaxError(other_shape(torch.float32), scale=2.0)
    late, early = wanted.clone(), wanted.clone()
    late[0, 4, 1], early[1, 2, 0] = 1.0, 0.5
    worst.compare(late, wanted, "late")
    worst.compare(early, wanted, "early")
    worst.compare(late, wanted, "late again", start=10)
    assert (worst.deviation, worst.position, worst.words) == (0.5, 2, "early")


def test_not_a_number_is_an_infinite_deviation_and_equal_infinities_are_none() -> None:
    wanted = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    worst = MaxError(same_shape(torch.float32), scale=1.0)
    worst.compare(wanted.clone(), wanted, "equal")
    assert (worst.deviation, worst.failed) == (0.0, False)
    worst.compare(torch.tensor([[0.0, -math.inf], [math.nan, 0.0]]), wanted, "not a number")
    assert (worst.deviation, worst.position) == (math.inf, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tolerances_follow_the_precision_and_stay_finite(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    assert eps < same_shape(dtype).value <= other_shape(dtype).value <= 0.1
