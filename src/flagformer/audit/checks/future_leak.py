"""No logits depend on tokens that come later."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flagformer.audit.attempts import Attempts
from flagformer.audit.calls import PREFIX, CallInputs
from flagformer.audit.checks import places
from flagformer.audit.max_error import MaxError
from flagformer.audit.report import CheckResult, judged
from flagformer.audit.subject import NotApplicable, Settings, Subject

Edits = list[tuple[slice, int]]  # rows, and the position at which these are changed


def future_leak(subject: Subject) -> CheckResult:
    """Changes each token, and all tokens from it on, to several values, in eval and in train mode.

    Shapes and random states stay the same, so earlier logits must stay the same almost to the bit.
    """
    if subject.why_not_causal:
        raise NotApplicable(subject.why_not_causal)
    worst, tries = subject.same_shape(), Attempts()
    prefixes = [0] if subject.calls.missing(PREFIX) else [0, subject.settings.seq_len // 4]
    for prefix in prefixes:
        _compare(subject, worst, prefix, "in eval mode")
    if subject.module is not None:
        with subject.training(True), tries.of("train mode"):
            _compare(subject, worst, 0, "in train mode")
    words = "no later token moves an earlier logit"
    if prefixes[1:]:
        tries.notes.append(f"with a prefix of {prefixes[1]} tokens, behind the prefix only")
    return judged("future_leak", worst, words, tries)


def _compare(subject: Subject, worst: MaxError, prefix: int, mode: str) -> None:
    given = CallInputs(prefix=prefix or None)
    base = subject.logits(subject.ids, given)
    if not torch.equal(subject.logits(subject.ids, given), base):
        raise NotImplementedError(f"{mode} the same random state does not give the same logits")
    for edits in edits_of(subject.settings, max(1, prefix)):
        for changed in changes(subject, edits):
            got = subject.logits(changed, given)
            for rows, place in edits:
                words = f"{mode} these logits change when token {place} or later ones change"
                worst.compare(got[rows, :place], base[rows, :place], words)


def edits_of(settings: Settings, first: int) -> Iterator[Edits]:
    """For each forward: one position in all rows; in brief, another one in every row."""
    every = places(first, settings.seq_len, settings.most_places)
    if not settings.brief:
        yield from ([(slice(None), place)] for place in every)
        return
    for start in range(0, len(every), settings.rows):
        some = every[start : start + settings.rows]
        yield [(slice(row, row + 1), place) for row, place in enumerate(some)]


def changes(subject: Subject, edits: Edits) -> Iterator[Tensor]:
    """The ids with one token changed (a different value in every row), then with all from there on."""
    one, others = subject.ids.clone(), subject.other_ids(subject.ids)
    for rows, place in edits:
        one[rows, place] = others[rows, place]
    yield one
    rest, others = subject.ids.clone(), subject.other_ids(subject.ids)
    for rows, place in edits:
        rest[rows, place:] = others[rows, -1:] if place % 2 else others[rows, place:]
    yield rest
