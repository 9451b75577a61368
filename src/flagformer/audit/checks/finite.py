"""Logits and gradients are finite in full precision, and in training under autocast."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.audit.calls import MASK, PACKING, STARTS, CallInputs
from flagformer.audit.check_result import CheckResult, must_be
from flagformer.audit.checks.gradients import loss_of
from flagformer.audit.checks.packing import packed_lengths
from flagformer.audit.checks.padding import padded_left, row_lengths
from flagformer.audit.subject import Subject, checked
from flagformer.ops.seed import seed_devices

FULL = "in full precision"


class NonFinite(NamedTuple):
    """A value that is not finite, with a description of where."""

    words: str
    position: int | None = None
    parameters: tuple[str, ...] = ()


Way = Callable[[Subject, str], NonFinite | None]


def finite(subject: Subject) -> CheckResult:
    """Logits, also of padded and packed rows, in full precision and under autocast; gradients there."""
    when = subject.settings.low_words
    subject.doing = FULL
    plain = subject.logits(subject.ids)
    with subject.comparing():
        ways = _in_full(subject)
        bad = _bad_logits(plain, FULL) or next(filter(None, ways.values()), None)
    if bad is None and subject.coarsest == torch.float16 and subject.settings.low == torch.bfloat16:
        return must_be("finite", True, "finite in float16; bf16 autocast does not apply to float16 weights")
    if bad is None:
        subject.doing = when
        with subject.autocast(True):
            with torch.no_grad():
                low = checked(subject.calls.forward(subject.ids), subject.ids)
                bad = _bad_logits(low, when) or _arranged(subject, when, ways)
            bad = bad or _trained(subject, when)
    if bad is not None:
        return must_be("finite", False, bad.words, position=bad.position, parameters=bad.parameters)
    difference = ((low.double() - plain.double()).abs().max() / plain.abs().max().clamp(min=1e-30)).item()
    words = f"finite in full precision and {when} (relative difference {difference:.1e})"
    return must_be("finite", True, words)


def _bad_logits(logits: Tensor, when: str) -> NonFinite | None:
    """The first position of logits `[B, T, V]` that are NaN or +inf; -inf may exclude a token."""
    positions = (logits.isnan() | logits.isposinf()).any(dim=-1).any(dim=0).nonzero()
    return NonFinite(f"logits are not finite {when}", int(positions[0])) if len(positions) else None


def _in_full(subject: Subject) -> dict[Way, NonFinite | None]:
    """The result of each arrangement in full precision; the padding checks report the errors of the model."""
    found = {}
    for way in ARRANGED:
        with contextlib.suppress(Exception):
            found[way] = way(subject, FULL)
    return found


def _arranged(subject: Subject, when: str, ways: Iterable[Way]) -> NonFinite | None:
    """The same for the valid tokens of padded and packed rows, where a fully masked query may give NaN."""
    for way in ways:
        bad = way(subject, when)
        if bad is not None:
            return bad
    return None


def _bad_padded_right(subject: Subject, when: str) -> NonFinite | None:
    if subject.calls.missing(MASK):
        return None
    lengths, counts = _lengths(subject)
    mask = torch.arange(subject.settings.seq_len, device=subject.device) < counts[:, None]
    logits = subject.calls.forward(subject.ids, CallInputs(mask=mask))
    bad = (_bad_logits(logits[r : r + 1, :n], _row(n, "right", when)) for r, n in enumerate(lengths))
    return next(filter(None, bad), None)


def _bad_padded_left(subject: Subject, when: str) -> NonFinite | None:
    if subject.calls.missing(STARTS):
        return None
    lengths, counts = _lengths(subject)
    ids = padded_left(subject.ids, lengths, torch.zeros_like(subject.ids))
    logits = subject.calls.forward(ids, CallInputs(starts=subject.settings.seq_len - counts))
    bad = (_bad_logits(logits[r : r + 1, -n:], _row(n, "left", when)) for r, n in enumerate(lengths))
    return next(filter(None, bad), None)


def _bad_packed(subject: Subject, when: str) -> NonFinite | None:
    if subject.calls.missing(PACKING):
        return None
    lengths = packed_lengths(subject.settings)
    return _bad_logits(
        subject.calls.forward(subject.ids, CallInputs(seq_lens=lengths)), f"in packed rows, {when}"
    )


ARRANGED: tuple[Way, ...] = (_bad_padded_right, _bad_padded_left, _bad_packed)


def _lengths(subject: Subject) -> tuple[list[int], Tensor]:
    lengths = row_lengths(subject)
    return lengths, torch.tensor(lengths, device=subject.device)


def _row(n: int, side: str, when: str) -> str:
    return f"in a row of {n} tokens padded {side}, {when}"


def _trained(subject: Subject, when: str) -> NonFinite | None:
    """The loss and gradients of one training step under the enclosing autocast."""
    if subject.module is None:
        return None
    seed_devices(subject.settings.seed)
    random.seed(subject.settings.seed)
    subject.module.zero_grad()
    with subject.training(True), torch.enable_grad():
        logits, loss = loss_of(subject, subject.ids)
        bad = _bad_logits(logits, f"in train mode {when}")
        if bad or not loss.isfinite():
            return bad or NonFinite(f"the loss is {loss.item()} {when}")
        if not loss.requires_grad:
            return None
        loss.backward()
    named = subject.module.named_parameters()
    names = tuple(name for name, p in named if p.grad is not None and not _all_finite(p.grad))
    return (
        NonFinite(f"gradients are not finite {when}: {', '.join(names[:6])}", None, names) if names else None
    )


def _all_finite(gradient: Tensor) -> bool:
    return bool((gradient.coalesce().values() if gradient.is_sparse else gradient).isfinite().all())
