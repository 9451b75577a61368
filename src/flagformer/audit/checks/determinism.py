"""In eval mode the same input gives the same output."""

from __future__ import annotations

from flagformer.audit.check_result import CheckResult, judged
from flagformer.audit.subject import Subject


def determinism(subject: Subject) -> CheckResult:
    """Other random states, and other inputs in between, must not change the logits."""
    words = "the same logits after other seeds and inputs"
    return judged("determinism", subject.repeatability, words)
