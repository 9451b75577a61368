"""Token ids of a long text, encoded in overlapping windows, equal to those of one call for the whole text.

A tokenizer treats the ends of its input differently: it strips spaces, adds a prefix, or cuts a run of
spaces, digits or letters. Two windows therefore share `OVERLAP` characters, and the tokens of the second
follow those of the first from the middle of a run of tokens that is equal in both. If there is no such run,
the first window grows, up to the whole text.

A cut is between two words of the pre-tokenizer, which are encoded independently. BPE may be cut within a
word: if no merge crosses a boundary in either window, none crosses it in the whole text, because up to the
first merge that would cross it both sides are merged as in the windows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW = 1 << 18  # characters per call of the tokenizer
OVERLAP = 1 << 12  # characters shared by two windows
TOGETHER = 8  # windows that are encoded together
AGREE = 8  # tokens before and after a cut that must be equal in both windows


@dataclass(frozen=True)
class Part:
    """A part of a text and its tokens.

    Attributes:
        ids: int32 [N].
        starts: int64 [N], the first character of each token in `text`.
    """

    text: str
    ids: Any
    starts: Any


@dataclass(frozen=True)
class _Window:
    """`text` begins at character `origin` of the whole text. The columns of `tokens`, int64 [N, 4], are the
    first character, the last one plus one, the id, and whether a word begins."""

    text: str
    origin: int
    tokens: Any

    @property
    def end(self) -> int:
        return self.origin + len(self.text)


def encode_parts(chunks: Iterator[str], tokenizer: Any) -> Iterator[Part]:
    """The parts of the text of all `chunks`, in order, without special tokens."""
    within_words = json.loads(tokenizer.to_str())["model"].get("type") == "BPE"
    windows = _windows(chunks, tokenizer)
    _, window = next(windows, ("", _Window("", 0, np.empty((0, 4), dtype=np.int64))))
    begin, first = 0, 0  # character and token in the window at which the next part begins
    for chunk, later in windows:
        cut = _cut(window, later, within_words)
        if cut is None:
            # twice as long, which keeps the cost linear
            doubled = itertools.islice(windows, max(0, len(window.text) // WINDOW - 1))
            text = "".join([window.text, chunk, *(one for one, _ in doubled)])
            window = _window(text, window.origin, tokenizer.encode(text, add_special_tokens=False))
            continue
        last, following = cut
        end = int(later.tokens[following, 0])
        yield _part(window, slice(first, last), begin, end)
        window, begin, first = later, end, following
    yield _part(window, slice(first, None), begin, window.end)


def _windows(chunks: Iterator[str], tokenizer: Any) -> Iterator[tuple[str, _Window]]:
    """Each chunk, and the window of it and of `OVERLAP` characters before it. Several windows are encoded
    together, on all cores."""
    before, end = "", 0  # the last characters of the text so far, and its length
    while group := list(itertools.islice(chunks, TOGETHER)):
        texts, origins = [], []
        for chunk in group:
            texts.append(before + chunk)
            origins.append(end - len(before))
            before, end = texts[-1][-OVERLAP:], end + len(chunk)
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        yield from zip(group, map(_window, texts, origins, found))


def _window(text: str, origin: int, found: Any) -> _Window:
    """The window of a text that begins at character `origin`, and of its encoding."""
    tokens = np.empty((len(found.ids), 4), dtype=np.int64)
    if found.ids:
        tokens[:, :2], tokens[:, 2] = found.offsets, found.ids
        words = np.array([-1 if word is None else word for word in found.word_ids])
        tokens[:, 3] = np.diff(words, prepend=-2) != 0
    tokens[:, :2] += origin
    return _Window(text, origin, tokens)


def _part(window: _Window, which: slice, begin: int, end: int) -> Part:
    tokens = window.tokens[which]
    text = window.text[begin - window.origin : end - window.origin]
    return Part(text, tokens[:, 2].astype(np.int32), tokens[:, 0] - begin)


def _cut(window: _Window, later: _Window, within_words: bool) -> tuple[int, int] | None:
    """The index of the cut in both windows: in the middle of 2 * AGREE equal tokens, as close as possible to
    the middle of the overlap."""
    before = [tuple(token) for token in window.tokens[window.tokens[:, 0] >= later.origin].tolist()]
    after = [tuple(token) for token in later.tokens[later.tokens[:, 0] < window.end].tolist()]
    skipped = len(window.tokens) - len(before)
    index_of = {token: index for index, token in enumerate(after)}
    middle = (later.origin + window.end) // 2
    near = range(AGREE, len(before) - AGREE)
    for i in sorted(near, key=lambda index: abs(before[index][0] - middle)):
        start, _, _, is_word = before[i]
        _, last_end, _, _ = before[i - 1]
        j = index_of.get(before[i], -1)
        if j <= AGREE or not (is_word or within_words) or start < last_end or start <= before[i - 1][0]:
            continue
        if before[i - AGREE : i + AGREE] == after[j - AGREE : j + AGREE]:
            return skipped + i, j
    return None
