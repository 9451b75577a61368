"""Earlier logits do not depend on the number of tokens that follow."""

from __future__ import annotations

from flagformer.audit.attempts import Attempts
from flagformer.audit.calls import PREFIX, CallInputs
from flagformer.audit.check_result import CheckResult, judged
from flagformer.audit.checks import positions
from flagformer.audit.max_error import MaxError
from flagformer.audit.subject import NotApplicable, Subject


def length(subject: Subject) -> CheckResult:
    """The first tokens give the same logits with and without the rest of the input.

    Finds faults that changed tokens do not show: positions counted from the end or the middle, selections
    and statistics over the whole row.
    """
    if subject.why_not_causal:
        raise NotApplicable(subject.why_not_causal)
    worst, attempts = subject.other_shape(), Attempts()
    prefix = 0 if subject.calls.missing(PREFIX) else subject.settings.seq_len // 4
    given = CallInputs(prefix=prefix or None)
    whole = subject.logits(subject.ids, given)
    for end in positions(max(1, prefix), subject.settings.seq_len, subject.settings.max_positions):
        words = f"{end} tokens alone and the same at the start of {subject.settings.seq_len} differ"
        with attempts.of(f"an input of {end} tokens"):
            worst.compare(subject.logits(subject.ids[:, :end], given), whole[:, :end], words)
    _across_path_changes(subject, worst, attempts)
    words = "the same logits alone and at the start of a longer input"
    return judged("length", worst, words, attempts)


def _across_path_changes(subject: Subject, worst: MaxError, attempts: Attempts) -> None:
    """Compare tokens before a change of the algorithm with and without later positions."""
    half = subject.settings.seq_len // 2
    for given in subject.across():
        with attempts.of(f"positions from {given.first} on"):
            whole, alone = subject.logits(subject.ids, given), subject.logits(subject.ids[:, :half], given)
            words = (
                f"with positions from {given.first} on, {half} tokens alone and the same at the start of "
                f"{subject.settings.seq_len} differ: position {given.first + half} changes the whole row"
            )
            worst.compare(alone, whole[:, :half], words)
