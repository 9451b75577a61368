"""One check per file: a function from the subject to its result.

A check raises NotApplicable if it has no result. If the model refuses an argument with a clear message, the
check is not applicable; any other exception of the model is a failed check, never a crash of the audit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flagformer.audit.attempts import is_refusal, one_line
from flagformer.audit.check_result import FAILED, NOT_APPLICABLE, CheckResult, skipped
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


def positions(first: int, end: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced positions `first <= p < end`, including both ends."""
    count = end - first
    if count <= limit:
        return list(range(first, end))
    return sorted({first + round(i * (count - 1) / (limit - 1)) for i in range(limit)})
