"""Padding does not change the logits of valid tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.audit.calls import MASK, STARTS, CallInputs
from flagformer.audit.check_result import CheckResult, judged
from flagformer.audit.subject import Subject


def row_lengths(subject: Subject) -> list[int]:
    """A full row, two shorter ones, and one of a single token; in brief one token less, and half a row."""
    longest = subject.settings.seq_len
    if subject.settings.brief:
        return [longest - 1, longest // 2]
    return [longest, longest * 3 // 4, longest // 2, 1]


def alone(subject: Subject, lengths: list[int]) -> list[Tensor]:
    """The logits of each row's first tokens, in a batch of one without padding."""
    return [subject.logits(subject.ids[row : row + 1, :n])[0] for row, n in enumerate(lengths)]


def fillings(subject: Subject) -> list[tuple[str, Tensor]]:
    """Two contents for the padding, which must not change the logits."""
    return [("zeros", torch.zeros_like(subject.ids)), ("other tokens", subject.other_ids(subject.ids))]


def right_padding(subject: Subject) -> CheckResult:
    """Compare rows of different lengths, padded at the end and masked, with each row alone."""
    subject.needs(MASK)
    worst = subject.other_shape()
    lengths = row_lengths(subject)
    positions = torch.arange(subject.settings.seq_len, device=subject.device)
    mask = positions < torch.tensor(lengths, device=subject.device)[:, None]  # [B, T]
    wanted = alone(subject, lengths)
    for name, filling in fillings(subject):
        subject.doing = f"rows of {lengths} tokens padded right with {name}"
        got = subject.logits(torch.where(mask, subject.ids, filling), CallInputs(mask=mask))
        for row, n in enumerate(lengths):
            words = f"a row of {n} tokens padded right with {name} and masked differs from the row alone"
            worst.compare(got[row, :n], wanted[row], words)
    subject.doing = "a mask of ones"
    all_valid = subject.logits(subject.ids, CallInputs(mask=torch.ones_like(mask)))
    worst.compare(all_valid, subject.reference, "a mask of ones changes the logits")
    return judged("right_padding", worst, "padded rows equal each row alone")


def left_padding(subject: Subject) -> CheckResult:
    """Compare rows of different lengths, padded in front, with each row alone."""
    subject.needs(STARTS)
    worst = subject.other_shape()
    lengths = row_lengths(subject)
    wanted = alone(subject, lengths)
    starts = subject.settings.seq_len - torch.tensor(lengths, device=subject.device)  # [B]
    for name, filling in fillings(subject):
        subject.doing = f"rows of {lengths} tokens padded left with {name}"
        got = subject.logits(padded_left(subject.ids, lengths, filling), CallInputs(starts=starts))
        for row, n in enumerate(lengths):
            words = f"a row of {n} tokens padded left with {name} differs from the row alone"
            worst.compare(got[row, -n:], wanted[row], words)
    return judged("left_padding", worst, "padded rows equal each row alone")


def padded_left(ids: Tensor, lengths: list[int], filling: Tensor) -> Tensor:
    """The first tokens of each row, moved to its end."""
    padded = filling.clone()
    for row, n in enumerate(lengths):
        padded[row, -n:] = ids[row, :n]
    return padded
