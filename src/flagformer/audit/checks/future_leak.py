"""No logits depend on tokens that come later."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flagformer.audit.calls import PREFIX, Given
from flagformer.audit.checks import places
from flagformer.audit.refusal import Tries
from flagformer.audit.report import CheckResult, judged
from flagformer.audit.subject import NotApplicable, Subject
from flagformer.audit.worst import Worst


def future_leak(subject: Subject) -> CheckResult:
    """Changes each token, and all tokens from it on, to several values, in eval and in train mode.

    Shapes and random states stay the same, so earlier logits must stay the same almost to the bit.
    """
    if subject.why_not_causal:
        raise NotApplicable(subject.why_not_causal)
    worst, tries = subject.same_shape(), Tries()
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


def _compare(subject: Subject, worst: Worst, prefix: int, mode: str) -> None:
    given = Given(prefix=prefix or None)
    base = subject.logits(subject.ids, given)
    if not torch.equal(subject.logits(subject.ids, given), base):
        raise NotImplementedError(f"{mode} the same random state does not give the same logits")
    for place in places(max(1, prefix), subject.settings.seq_len, subject.settings.most_places):
        for changed in changes(subject, place):
            got = subject.logits(changed, given)[:, :place]
            words = f"{mode} these logits change when token {place} or later ones change"
            worst.compare(got, base[:, :place], words)


def changes(subject: Subject, place: int) -> Iterator[Tensor]:
    """The ids with one token changed (a different value in every row), then with all from there on."""
    ids = subject.ids
    one = ids.clone()
    one[:, place] = subject.other_ids(ids)[:, place]
    yield one
    rest = subject.other_ids(ids)
    if place % 2:
        rest = rest[:, -1:].expand_as(ids)
    yield torch.cat((ids[:, :place], rest[:, place:]), dim=1)
