"""A model that ignores its input passes every comparison: only if this holds do the others mean anything."""

from __future__ import annotations

from flagformer.audit.report import CheckResult, must_be
from flagformer.audit.subject import Subject


def sensitivity(subject: Subject) -> CheckResult:
    """A changed token must move the logits from its position on."""
    least = subject.same_shape()
    subject.wobble  # noqa: B018  random outputs move by themselves and are reported there
    place = subject.settings.seq_len // 3
    changed = subject.ids.clone()
    changed[:, place] = subject.other_ids(subject.ids)[:, place]
    moved = (subject.logits(changed) - subject.reference).abs() / least.scale
    at, later = moved[:, place].max().item(), moved[:, place + 1 :].max().item()
    moves = max(at, later) > least.tolerance.value
    if not moves:
        words = f"changing token {place} changes no logits at or after it: the other checks say nothing"
    elif later <= least.tolerance.value:
        words = "a token moves its own logits only: no context is used"
    else:
        words = f"own logits move by {at:.2g}, later ones by {later:.2g}"
    return must_be("sensitivity", moves, words, position=None if moves else place)
