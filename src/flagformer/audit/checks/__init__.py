"""One check a file: a function from the subject to its result.

A check raises NotApplicable where it can say nothing. An argument that the model refuses in clear words makes
a check not applicable; any other exception of the model's is a failed check, never a crash of the audit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flagformer.audit.attempts import is_refusal, one_line
from flagformer.audit.report import FAILED, NOT_APPLICABLE, CheckResult, skipped
from flagformer.audit.subject import NotApplicable, Subject

Check = Callable[[Subject], CheckResult]


def run(check: Check, subject: Subject) -> CheckResult:
    result = _result(check, subject)
    promised = "" if subject.why_not_causal else subject.calls.promises(result.check)
    if promised and result.status == NOT_APPLICABLE:
        return replace(
            result, status=FAILED, words=f"{promised}, but this check could not run: {result.words}"
        )
    return result


def _result(check: Check, subject: Subject) -> CheckResult:
    name = check.__name__
    subject.doing, subject.optional = "", False
    try:
        return check(subject)
    except NotApplicable as why:
        return skipped(name, str(why))
    except Exception as error:
        doing = f"{subject.doing}: " if subject.doing else ""
        if subject.optional and is_refusal(error):
            return skipped(name, f"{doing}the model refuses: {one_line(error)}")
        return CheckResult(name, FAILED, f"{doing}the model raises {one_line(error)}")


def places(first: int, end: int, most: int) -> list[int]:
    """The positions `first <= p < end`, thinned out evenly to `most`; both ends stay."""
    count = end - first
    if count <= most:
        return list(range(first, end))
    return sorted({first + round(i * (count - 1) / (most - 1)) for i in range(most)})
