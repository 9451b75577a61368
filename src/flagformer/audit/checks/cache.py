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
DRAFT = 3  # tokens that are decoded before some are dropped


def cache(subject: Subject) -> CheckResult:
    """Decode in one block, token by token, in others; padded, windowed, truncated, marked, reordered."""
    subject.needs(CACHE)
    worst, attempts = subject.other_shape(), Attempts()
    for name, blocks in schedules(subject.settings):
        with attempts.of(name):
            got = decoded(subject, subject.ids, blocks)
            worst.compare(got, subject.reference, f"{name}: cached and full logits differ")
    parts = (_across_path_changes, _left_padded, _windowed, _truncated, _truncated_left_padded, _rolled_back)
    for part in (*parts, _reordered, _in_turns):
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


def _across_path_changes(subject: Subject, worst: MaxError) -> None:
    """Decode positions that cross a change of the algorithm."""
    for given in subject.across():
        wanted = subject.logits(subject.ids, given)
        got = decoded(subject, subject.ids, [1] * subject.settings.seq_len, given)
        worst.compare(
            got, wanted, f"positions from {given.first} on, token by token: cached and full logits differ"
        )


def _rows_padded_left(subject: Subject) -> tuple[list[int], Tensor, CallInputs]:
    """The lengths of the rows, their ids [B, T] padded on the left, and inputs that declare the padding."""
    lengths, total = row_lengths(subject), subject.settings.seq_len
    ids = padded_left(subject.ids, lengths, subject.other_ids(subject.ids))
    return lengths, ids, CallInputs(starts=total - torch.tensor(lengths, device=subject.device))


def _left_padded(subject: Subject, worst: MaxError) -> None:
    if subject.calls.missing(STARTS) or subject.calls.missing(LEFT_CACHE):
        return
    lengths, ids, given = _rows_padded_left(subject)
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
    """Wrong tokens are decoded, then dropped, as in speculative decoding: a whole block, or its end."""
    length = subject.settings.seq_len // 2
    for right in (0, DRAFT - 1):
        session = _after(subject, length)
        with subject.comparing():
            session.step(_draft(subject, subject.ids, length, right))
            if not session.truncate(length + right):
                return
            got = session.step(subject.ids[:, length + right :])
        words = f"after tokens were dropped with `truncate({length + right})`, cached and full logits differ"
        worst.compare(got, subject.reference[:, length + right :], words, start=length + right)


def _truncated_left_padded(subject: Subject, worst: MaxError) -> None:
    """The end of a block is dropped from rows that are padded on the left."""
    if subject.calls.missing(STARTS) or subject.calls.missing(LEFT_CACHE):
        return
    lengths, ids, given = _rows_padded_left(subject)
    total = subject.settings.seq_len
    length, kept = total // 2, total // 2 + 1
    with subject.comparing():
        session = subject.calls.session(ids.shape[0], total, given)
        session.step(ids[:, :length])
        session.step(_draft(subject, ids, length, kept - length))
        if not session.truncate(kept):
            return
        got = session.step(ids[:, kept:])
    wanted = subject.logits(ids, given)[:, kept:]
    _compare_rows(worst, got, wanted, lengths, kept, f" padded left, after `truncate({kept})`")


def _rolled_back(subject: Subject, worst: MaxError) -> None:
    """Wrong tokens in several blocks, also of rows padded on the left, and back to the mark before them."""
    total = subject.settings.seq_len
    given, ids, lengths = NOTHING, subject.ids, [total] * subject.settings.rows
    if not (subject.calls.missing(STARTS) or subject.calls.missing(LEFT_CACHE)):
        lengths, ids, given = _rows_padded_left(subject)
    length = total // 2
    with subject.comparing():
        session = subject.calls.session(ids.shape[0], total, given)
        session.step(ids[:, :length])
        mark = session.mark()
        if mark is None:
            return
        for block in subject.other_ids(ids)[:, length:].split([1, 2, total - length - 3], dim=1):
            session.step(block)
        session.rollback(mark)
        got = session.step(ids[:, length:])
    wanted = subject.logits(ids, given)[:, length:]
    _compare_rows(worst, got, wanted, lengths, length, f", back at a mark after {length}")


def _compare_rows(
    worst: MaxError, got: Tensor, wanted: Tensor, lengths: list[int], start: int, how: str
) -> None:
    """Compare the tokens from `start` on of rows of these lengths, which padding on the left precedes."""
    total = start + got.shape[1]
    for row, n in enumerate(lengths):
        first = max(total - n - start, 0)
        words = f"a row of {n} tokens{how}: cached and full logits differ"
        worst.compare(got[row, first:], wanted[row, first:], words, start=start + first)


def _draft(subject: Subject, ids: Tensor, start: int, right: int) -> Tensor:
    """DRAFT tokens from `start` on, of which only the first `right` are those of `ids`."""
    wrong = subject.other_ids(ids)[:, start + right : start + DRAFT]
    return torch.cat([ids[:, start : start + right], wrong], dim=1)


def _in_turns(subject: Subject, worst: MaxError) -> None:
    """Two sessions with different tokens, a block of each in turns."""
    others, length = subject.other_ids(subject.ids), subject.settings.seq_len
    blocks = [length // 2, 1, length - length // 2 - 1]
    sessions = [subject.calls.session(subject.settings.rows, length) for _ in range(2)]
    parts: list[list[Tensor]] = [[], []]
    with subject.comparing():
        for pair in zip(subject.ids.split(blocks, dim=1), others.split(blocks, dim=1)):
            for session, got, block in zip(sessions, parts, pair):
                got.append(session.step(block))
    for got, wanted in zip(parts, (subject.reference, subject.logits(others))):
        worst.compare(torch.cat(got, dim=1), wanted, "two sessions in turns: cached and full logits differ")


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
