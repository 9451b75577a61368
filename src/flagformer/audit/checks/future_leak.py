"""No logits depend on later tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flagformer.audit.attempts import Attempts
from flagformer.audit.calls import PREFIX, CallInputs
from flagformer.audit.check_result import CheckResult, judged
from flagformer.audit.checks import positions
from flagformer.audit.max_error import MaxError
from flagformer.audit.subject import NotApplicable, Settings, Subject

Edits = list[tuple[slice, int]]  # rows, and the position at which these are changed


def future_leak(subject: Subject) -> CheckResult:
    """Change each token, and all tokens from it on, to several values, in eval and in train mode.

    Shapes and random states do not change, so earlier logits must be almost bit-identical.
    """
    if subject.why_not_causal:
        raise NotApplicable(subject.why_not_causal)
    worst, attempts = subject.same_shape(), Attempts()
    prefixes = [0] if subject.calls.missing(PREFIX) else [0, subject.settings.seq_len // 4]
    for prefix in prefixes:
        _compare(subject, worst, prefix, "in eval mode")
    if subject.module is not None:
        with subject.training(True), attempts.of("train mode"):
            _compare(subject, worst, 0, "in train mode")
    words = "no later token changes an earlier logit"
    if prefixes[1:]:
        attempts.notes.append(f"with a prefix of {prefixes[1]} tokens, only for the tokens after it")
    return judged("future_leak", worst, words, attempts)


def _compare(subject: Subject, worst: MaxError, prefix: int, mode: str) -> None:
    given = CallInputs(prefix=prefix or None)
    base = subject.logits(subject.ids, given)
    if not torch.equal(subject.logits(subject.ids, given), base):
        raise NotImplementedError(f"{mode} the same random state does not give the same logits")
    for edits in edits_of(subject.settings, max(1, prefix)):
        for changed in changes(subject, edits):
            got = subject.logits(changed, given)
            for rows, position in edits:
                words = f"{mode} these logits change when token {position} or later ones change"
                worst.compare(got[rows, :position], base[rows, :position], words)


def edits_of(settings: Settings, first: int) -> Iterator[Edits]:
    """The edits of each forward: one position in all rows; in brief, a different one in every row."""
    edited = positions(first, settings.seq_len, settings.max_positions)
    if not settings.brief:
        yield from ([(slice(None), position)] for position in edited)
        return
    for start in range(0, len(edited), settings.rows):
        of_forward = edited[start : start + settings.rows]
        yield [(slice(row, row + 1), position) for row, position in enumerate(of_forward)]


def changes(subject: Subject, edits: Edits) -> Iterator[Tensor]:
    """Yield ids with one token changed (a different value in every row), then with all tokens from it on."""
    one, others = subject.ids.clone(), subject.other_ids(subject.ids)
    for rows, position in edits:
        one[rows, position] = others[rows, position]
    yield one
    rest, others = subject.ids.clone(), subject.other_ids(subject.ids)
    for rows, position in edits:
        rest[rows, position:] = others[rows, -1:] if position % 2 else others[rows, position:]
    yield rest
