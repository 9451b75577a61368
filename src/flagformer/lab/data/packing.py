"""Rows of tokens from the documents of a split: windows, packed documents, or one document a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from flagformer.lab.data.token_store import Spans

Packing = Literal["windows", "documents", "padded"]
# A sequence of n + 1 tokens, of which a row reads the first n and predicts the last n, in ranges of a store:
# (first token, count).
Ranges = Sequence[tuple[int, int]]


class RowTable(ABC):
    """The rows of a split at one length.

    Attributes:
        count: number of rows.
    """

    count: int

    @abstractmethod
    def row(self, index: int) -> Sequence[Ranges]:
        """The sequences of a row, in order."""

    def first_tokens(self, which: Any) -> Any:
        """The first token of each of these rows [N], if each is one range; else None."""
        return None


class Windows(RowTable):
    """Windows of the split's tokens, across documents; window i begins at token i * stride."""

    def __init__(self, spans: Spans, seq_len: int, stride: int) -> None:
        self.spans, self.seq_len, self.stride = spans, seq_len, stride
        self.ends = np.cumsum(spans.lengths)
        self.count = max(0, (spans.total - seq_len - 1) // stride + 1)

    def row(self, index: int) -> Sequence[Ranges]:
        start, left = index * self.stride, self.seq_len + 1
        number = int(self.ends.searchsorted(start, side="right"))
        ranges = []
        while left:
            end = int(self.ends[number])
            count = min(left, end - start)
            ranges.append(
                (int(self.spans.starts[number]) + start - end + int(self.spans.lengths[number]), count)
            )
            start, left, number = start + count, left - count, number + 1
        return [ranges]

    def first_tokens(self, which: Any) -> Any:
        return self.spans.starts[0] + which * self.stride if len(self.ends) == 1 else None


class Padded(RowTable):
    """One document a row; a longer one continues in the next rows, whose first token is the last target of
    the row before."""

    def __init__(self, spans: Spans, seq_len: int) -> None:
        targets = np.maximum(spans.lengths - 1, 0)
        counts = -(-targets // seq_len)  # rows of each document
        document = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(document)) - (np.cumsum(counts) - counts)[document]
        self.starts = spans.starts[document] + number * seq_len
        self.lengths = np.minimum(seq_len, targets[document] - number * seq_len)
        self.count = len(document)

    def row(self, index: int) -> Sequence[Ranges]:
        return [[(int(self.starts[index]), int(self.lengths[index]) + 1)]]


class Packed(RowTable):
    """As many whole sequences of `Padded`, in order, as fit into a row."""

    def __init__(self, spans: Spans, seq_len: int) -> None:
        self.sequences = Padded(spans, seq_len)
        ends = np.cumsum(self.sequences.lengths)
        following = np.searchsorted(ends, ends - self.sequences.lengths + seq_len, side="right").tolist()
        first = [0]
        while first[-1] < len(following):
            first.append(following[first[-1]])
        self.first, self.count = first, len(first) - 1

    def row(self, index: int) -> Sequence[Ranges]:
        return [self.sequences.row(i)[0] for i in range(self.first[index], self.first[index + 1])]


def row_table(packing: Packing, spans: Spans, seq_len: int, stride: int) -> RowTable:
    """The rows of a split; `stride` is of windows."""
    if packing == "windows":
        return Windows(spans, seq_len, stride)
    return Padded(spans, seq_len) if packing == "padded" else Packed(spans, seq_len)


def read_ranges(store: Any, ranges: Ranges) -> Any:
    """The tokens of one sequence, int64 [n + 1]."""
    if len(ranges) == 1:
        return store.read(*ranges[0])
    return np.concatenate([store.read(*one) for one in ranges])
