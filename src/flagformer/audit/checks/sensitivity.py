"""Logits depend on the input: a model that ignores it passes every comparison of the other checks."""

from __future__ import annotations

from flagformer.audit.check_result import CheckResult, must_be
from flagformer.audit.subject import Subject


def sensitivity(subject: Subject) -> CheckResult:
    """A changed token must change the logits at or after its position."""
    smallest = subject.same_shape()
    subject.repeatability  # noqa: B018  random outputs always change and are reported there
    position = subject.settings.seq_len // 3
    changed = subject.ids.clone()
    changed[:, position] = subject.other_ids(subject.ids)[:, position]
    change = (subject.logits(changed) - subject.reference).abs() / smallest.scale
    at, later = change[:, position].max().item(), change[:, position + 1 :].max().item()
    changes = max(at, later) > smallest.tolerance.value
    if not changes:
        words = (
            f"changing token {position} changes no logits at or after it: the other checks are meaningless"
        )
    elif later <= smallest.tolerance.value:
        words = "a token changes only its own logits: no context is used"
    else:
        words = f"a changed token changes its own logits by {at:.2g}, later ones by {later:.2g}"
    return must_be("sensitivity", changes, words, position=None if changes else position)
