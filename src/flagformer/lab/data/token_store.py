"""Token ids of several memory-mapped arrays, and the documents and splits in them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flagformer.lab.data import SPLITS, Split
from flagformer.lab.data.file import EDGES

UNITS = 2.0**64  # of the hashes of documents


class TokenStore:
    """Token ids of several files, read as one array.

    Args:
        parts: file and ids, integers [N], of each file in order; files without ids are left out.
    """

    def __init__(self, parts: Sequence[tuple[Path, Any]]) -> None:
        self.parts = [(path, ids) for path, ids in parts if len(ids)]
        self.starts = np.cumsum([0, *(len(ids) for _, ids in self.parts)]).tolist()

    def __len__(self) -> int:
        size: int = self.starts[-1]
        return size

    def read(self, start: int, count: int) -> Any:
        """Ids start ... start + count, int64 [count]."""
        number = bisect_right(self.starts, start) - 1
        first = start - self.starts[number]
        found = self.parts[number][1][first : first + count].astype(np.int64)
        if len(found) == count:
            return found
        return np.concatenate([found, self.read(start + len(found), count - len(found))])

    def read_rows(self, starts: Any, count: int) -> Any:
        """`count` ids from each of several starts, int64 [N, count]."""
        number = bisect_right(self.starts, int(starts.min())) - 1
        first, ids = self.starts[number], self.parts[number][1]
        if int(starts.max()) + count > self.starts[number + 1] or isinstance(ids, Ones):
            return np.stack([self.read(int(start), count) for start in starts])
        return ids[(starts - first)[:, None] + np.arange(count)].astype(np.int64)

    def refuse(self, start: int, count: int, vocabulary: int) -> None:
        """Raise ValueError for the first id outside of the vocabulary in a range."""
        ids = self.read(start, count)
        wrong = np.flatnonzero((ids < 0) | (ids >= vocabulary))
        if len(wrong):
            index = start + int(wrong[0])
            number = bisect_right(self.starts, index) - 1
            raise ValueError(
                f"`vocabulary` must be more than every token id, but is {vocabulary}, and token "
                f"{index - self.starts[number]:,} of {self.parts[number][0]} is {int(ids[wrong[0]]):,}; set "
                "it to the tokenizer's largest id plus one, or check the `dtype` of the file"
            )


class Ones:
    """An array of ones: the sizes of tokens that are bytes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, which: slice) -> Any:
        return np.ones(len(range(*which.indices(self.count))), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Spans:
    """Parts of a store: a document each, or one part without documents.

    Attributes:
        starts: int64 [N], the first token of each.
        lengths: int64 [N], in tokens.
    """

    starts: Any
    lengths: Any

    @property
    def total(self) -> int:
        return int(self.lengths.sum())

    def chosen(self, which: Any) -> Spans:
        return Spans(self.starts[which], self.lengths[which])

    def cut(self, low: int, high: int) -> Spans:
        """The tokens low ... high of all spans in a row."""
        ends = np.cumsum(self.lengths)
        first, last = np.maximum(ends - self.lengths, low), np.minimum(ends, high)
        kept = last > first
        moved = self.starts + first - (ends - self.lengths)
        return Spans(moved[kept], (last - first)[kept])


def named_splits(splits: Any) -> Any:
    """The splits [N] that names of files say, with -1 for one name of both held-out splits; None unless some
    are for training and some for evaluation."""
    found = set(np.unique(splits).tolist())
    if 0 not in found or len(found) < 2:
        return None
    return np.array(splits) if len(found) == len(SPLITS) else np.where(splits == 0, 0, -1)


@dataclass(frozen=True, eq=False)
class Collection:
    """All tokens of a source.

    Attributes:
        ids: of all tokens.
        borders: int64 [N + 1], where documents begin and end; None: they are not known.
        sizes: bytes of text of each token; None: tokens do not encode bytes.
        hashes: uint64 [N], of the content of each document; None: not computed.
        files: the split of each document, or of each file without documents, as an index of `SPLITS`; -1 for
            evaluation on both held-out splits, half of them each. None: files name no splits.
        labels: int64 [N], the class of each document, as an index of `classes`; None: they have none.
    """

    ids: TokenStore
    borders: Any = None
    sizes: TokenStore | None = None
    hashes: Any = None
    files: Any = None
    labels: Any = None
    classes: tuple[str, ...] = ()

    @property
    def all_spans(self) -> Spans:
        """The documents, or the files."""
        borders = np.asarray(self.ids.starts if self.borders is None else self.borders)
        return Spans(borders[:-1], np.diff(borders))

    def split(self, split: Split, by: str) -> Spans:
        """The documents of a split, or its tokens where documents are not known.

        Args:
            by: "files", "hash" or "position".
        """
        low, high = EDGES[split]
        if by == "files":
            spans = self.all_spans.chosen(self.files == SPLITS.index(split))
            if split == "train" or not (self.files < 0).any():
                return spans
            shared = self.all_spans.chosen(self.files < 0)
            half, first = shared.total // 2, split == "validation"
            return shared.cut(0, half) if first else shared.cut(half, shared.total)
        if by == "hash":
            where = self.hashes / UNITS
            return self.all_spans.chosen((where >= low) & (where < high))
        spans = self.all_spans
        if self.borders is None:
            size = len(self.ids)
            return spans.cut(int(low * size), int(high * size))
        ends = np.searchsorted(self.borders[:-1], [low * len(self.ids), high * len(self.ids)])
        return spans.chosen(slice(*ends))
