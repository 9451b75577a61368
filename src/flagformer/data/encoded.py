"""A text as the tokens of a tokenizer: encoded once, kept on disk, mapped by every process that reads it."""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flagformer.data.download import CACHE, cache_directory

VERSION = 1  # of the files; another number makes them again
PIECE = 1 << 18  # bytes that are encoded at once
TAIL = 1 << 16  # of a piece, where its end is looked for
# Where pre-tokenizers cut in any case: between a letter or digit and a line end.
BORDER = re.compile(rb"[0-9A-Za-z](?=\n)")
WORD = re.compile(rb"[0-9A-Za-z](?=[ \r\n])")


@dataclass(frozen=True)
class Encoded:
    """One span of a text.

    Attributes:
        ids: int32 [N].
        sizes: int32 [N], the bytes of text that each token stands for; their sum is the span's.
        lossless: whether the tokens decode to the text they were made of.
    """

    ids: Tensor
    sizes: Tensor
    lossless: bool


def load_encoded(text: Tensor, spans: tuple[tuple[int, int], ...], tokenizer: Any, key: str) -> list[Encoded]:
    """Every span of the bytes `text` in tokens, encoded on first use.

    Args:
        key: names the files; it must change with the text, the spans or the tokenizer.

    Raises:
        ValueError: the directory `FLAGFORMER_CACHE` cannot be written.
    """
    base = cache_directory() / "tokens" / f"{key}-{VERSION}"
    try:
        if not base.with_suffix(".json").exists():
            _write(base, text, spans, tokenizer)
        return _read(base, base.with_suffix(".bin").stat().st_mtime_ns)
    except OSError as error:
        raise ValueError(
            f"`{CACHE}` must be a directory that can be written, but {error.filename or base} cannot be: "
            f"{error.strerror}"
        ) from error


def _write(base: Path, text: Tensor, spans: tuple[tuple[int, int], ...], tokenizer: Any) -> None:
    """The .bin first, the .json last, each under its name only when it is whole: processes may meet here."""
    base.parent.mkdir(parents=True, exist_ok=True)
    partial = base.with_suffix(f".{os.getpid()}.partial")
    counts, lossless = [], []
    try:
        with partial.open("wb") as file:
            for low, high in spans:
                count, whole = _encode_span(text, low, high, tokenizer, file)
                counts.append(count)
                lossless.append(whole)
        partial.replace(base.with_suffix(".bin"))
        partial.write_text(json.dumps({"counts": counts, "lossless": lossless}))
        partial.replace(base.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)


def _encode_span(text: Tensor, low: int, high: int, tokenizer: Any, file: Any) -> tuple[int, bool]:
    """Appends ids and sizes, interleaved as int32 pairs; returns how many, and whether nothing was lost."""
    count, lossless = 0, True
    for piece in pieces(text, low, high):
        shown = piece.decode("utf-8", errors="replace")
        found = tokenizer.encode(shown, add_special_tokens=False)
        pairs = np.empty((len(found.ids), 2), dtype="<i4")
        pairs[:, 0], pairs[:, 1] = found.ids, _sizes(shown, [start for start, _ in found.offsets], len(piece))
        file.write(pairs.tobytes())
        count += len(pairs)
        lossless = lossless and _is_lossless(tokenizer, found, piece)
    return count, lossless


def pieces(text: Tensor, low: int, high: int) -> Iterator[bytes]:
    """Bytes `low` to `high` in parts of at most `PIECE`, each ending where a tokenizer cuts in any case: at a
    line end if there is one, else at a word's, else at a character's."""
    while low < high:
        piece = text[low : min(low + PIECE, high)].numpy().tobytes()
        if low + len(piece) < high:
            piece = piece[: _last_border(piece)]
        yield piece
        low += len(piece)


def _last_border(piece: bytes) -> int:
    start = max(0, len(piece) - TAIL)
    for border in (BORDER, WORD):
        ends = [match.end() for match in border.finditer(piece, start)]
        if ends:
            return ends[-1]
    return character_border(piece, len(piece) - 4) or len(piece)


def character_border(content: bytes | Tensor, at: int) -> int:
    """The first byte from `at` on, at most three further, that begins a character of UTF-8."""
    return next((i for i in range(at, min(at + 4, len(content))) if int(content[i]) & 0xC0 != 0x80), at)


def _sizes(text: str, starts: list[int], total: int) -> Any:
    """Bytes from each token's first character to the next one's; what no token covers counts for the token
    before it. Tokens that share a character leave it to the last of them."""
    if not starts:
        return []
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    width = 1 + (points > 0x7F).astype("<i4") + (points > 0x7FF) + (points > 0xFFFF)
    ends = np.minimum(np.concatenate([[0], np.cumsum(width)]), total)
    edges = ends[np.maximum.accumulate([0, *starts[1:], len(text)])]
    edges[-1] = total
    return np.diff(edges)


def _is_lossless(tokenizer: Any, found: Any, piece: bytes) -> bool:
    """A space that a decoder adds or drops in front is no loss."""
    back = tokenizer.decode(found.ids, skip_special_tokens=False)
    return back.encode().lstrip(b" ") == piece.lstrip(b" ")


@functools.lru_cache(maxsize=4)
def _read(base: Path, modified: int) -> list[Encoded]:
    """`modified` is there so that a changed file is mapped again."""
    said = json.loads(base.with_suffix(".json").read_text())
    if not sum(said["counts"]):
        raise ValueError("`tokenizer` must give tokens, but it gives none for the whole text")
    with base.with_suffix(".bin").open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # never written to
    pairs = torch.frombuffer(held, dtype=torch.int32).view(-1, 2)
    parts = pairs.split(said["counts"])
    return [Encoded(part[:, 0], part[:, 1], whole) for part, whole in zip(parts, said["lossless"])]
