"""Sequences packed in one row do not attend to each other."""

from __future__ import annotations

from flagformer.audit.calls import PACKING, CallInputs
from flagformer.audit.check_result import CheckResult, judged
from flagformer.audit.subject import Settings, Subject


def packing(subject: Subject) -> CheckResult:
    """Compare every packed sequence with the same sequence in a row of its own."""
    subject.needs(PACKING)
    worst = subject.other_shape()
    rows = packed_lengths(subject.settings)
    subject.doing = f"seq_lens={rows}"
    got = subject.logits(subject.ids, CallInputs(seq_lens=rows))
    for row, lengths in enumerate(rows):
        start = 0
        for index, n in enumerate(lengths):
            wanted = subject.logits(subject.ids[row : row + 1, start : start + n])[0]
            words = f"sequence {index} of a row packed as {lengths} differs from the sequence alone"
            worst.compare(got[row, start : start + n], wanted, words)
            start += n
    return judged("packing", worst, "packed sequences equal each sequence alone")


def packed_lengths(settings: Settings) -> list[list[int]]:
    """The sequence lengths of each row: uneven thirds, a single token first, one last, and a whole row."""
    total, third = settings.seq_len, settings.seq_len // 3
    lengths = [[third, 1, total - third - 1], [1, total - 1], [total - third, third - 1, 1], [total]]
    return lengths[: settings.rows]
