"""Decoding with a cache gives the logits of the full forward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flagformer.audit.attempts import Attempts
from flagformer.audit.calls import CACHE, LEFT_CACHE, NOTHING, STARTS, WINDOW, CallInputs, Session
from flagformer.audit.check_result import CheckResult, judged
from flagformer.audit.checks.padding import padded_left, row_lengths
from flagformer.audit.max_error import MaxError
from flagformer.audit.subject import Settings, Subject

UNEVEN = (1, 4, 2, 7, 3)


def cache(subject: Subject) -> CheckResult:
    """In one block, token by token, in uneven blocks; also padded, windowed, truncated, reordered."""
    subject.needs(CACHE)
    worst, attempts = subject.other_shape(), Attempts()
    for name, blocks in schedules(subject.settings):
        with attempts.of(name):
            got = decoded(subject, subject.ids, blocks)
            worst.compare(got, subject.reference, f"{name}: cached and full logits differ")
    for part in (_across_turning_points, _left_padded, _windowed, _truncated, _reordered):
        with attempts.of(part.__name__.strip("_").replace("_", " ")):
            part(subject, worst)
    words = "cached and full logits are equal for all block sizes"
    return judged("cache", worst, words, attempts)


def schedules(settings: Settings) -> Iterator[tuple[str, list[int]]]:
    """Names and block sizes."""
    length = settings.seq_len
    if settings.brief:
        yield "in halves", [length // 2, length - length // 2]
        yield "a prompt, then token by token", [length - 3, 1, 1, 1]
        return
    uneven: list[int] = []
    while sum(uneven) < length:
        uneven.append(min(UNEVEN[len(uneven) % len(UNEVEN)], length - sum(uneven)))
    yield "all tokens in one block", [length]
    yield "token by token", [1] * length
    yield "in uneven blocks", uneven
    yield "a prompt, then token by token", [length // 2] + [1] * (length - length // 2)


def decoded(
    subject: Subject,
    ids: Tensor,
    blocks: list[int],
    given: CallInputs = NOTHING,
) -> Tensor:
    """The concatenated logits of all blocks, decoded one after the other."""
    with subject.comparing():
        session = subject.calls.session(ids.shape[0], ids.shape[1], given)
        return torch.cat([session.step(block) for block in ids.split(blocks, dim=1)], dim=1)


def _across_turning_points(subject: Subject, worst: MaxError) -> None:
    """Positions that cross a length from which on the model may compute in another way."""
    for given in subject.across():
        wanted = subject.logits(subject.ids, given)
        got = decoded(subject, subject.ids, [1] * subject.settings.seq_len, given)
        worst.compare(
            got, wanted, f"positions from {given.first} on, token by token: cached and full logits differ"
        )


def _left_padded(subject: Subject, worst: MaxError) -> None:
    if subject.calls.missing(STARTS) or subject.calls.missing(LEFT_CACHE):
        return
    lengths, total = row_lengths(subject), subject.settings.seq_len
    ids = padded_left(subject.ids, lengths, subject.other_ids(subject.ids))
    given = CallInputs(starts=total - torch.tensor(lengths, device=subject.device))
    wanted = subject.logits(ids, given)
    for name, blocks in schedules(subject.settings):
        got = decoded(subject, ids, blocks, given)
        for row, n in enumerate(lengths):
            words = f"a row of {n} tokens padded left, {name}: cached and full logits differ"
            worst.compare(got[row, -n:], wanted[row, -n:], words)


def _windowed(subject: Subject, worst: MaxError) -> None:
    """A sliding window, in the full forward and in the session."""
    if subject.calls.missing(WINDOW):
        return
    given = CallInputs(window=subject.settings.seq_len // 3)
    wanted = subject.logits(subject.ids, given)
    for name, blocks in schedules(subject.settings):
        got = decoded(subject, subject.ids, blocks, given)
        worst.compare(got, wanted, f"with window={given.window}, {name}: cached and full logits differ")


def _truncated(subject: Subject, worst: MaxError) -> None:
    """Wrong tokens are decoded, then dropped, as in speculative decoding."""
    length = subject.settings.seq_len // 2
    session = _after(subject, length)
    with subject.comparing():
        session.step(subject.other_ids(subject.ids)[:, length : length + 3])
        if not session.truncate(length):
            return
        got = session.step(subject.ids[:, length:])
    words = f"after tokens were dropped with `truncate({length})`, cached and full logits differ"
    worst.compare(got, subject.reference[:, length:], words, start=length)


def _reordered(subject: Subject, worst: MaxError) -> None:
    """Rows are permuted, one is duplicated and one dropped, as in beam search."""
    length = subject.settings.seq_len // 2
    index = torch.tensor([1, 1] if subject.settings.brief else [3, 0, 0, 1], device=subject.device)
    session = _after(subject, length)
    if not session.reorder(index):
        return
    with subject.comparing():
        got = session.step(subject.ids[index][:, length:])
    words = "after rows were reordered with `reorder`, cached and full logits differ"
    worst.compare(got, subject.reference[index][:, length:], words, start=length)


def _after(subject: Subject, length: int) -> Session:
    with subject.comparing():
        session = subject.calls.session(subject.settings.rows, subject.settings.seq_len)
        session.step(subject.ids[:, :length])
    return session
