"""A text as the tokens of a tokenizer: encoded once, kept on disk, mapped by every process that reads it."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flagformer.lab.data import windows
from flagformer.lab.data.download import CACHE, cache_directory
from flagformer.lab.data.lock import exclusive

VERSION = 2  # of the files; another number makes them again
PAIR = 8  # bytes of an id and a size
CONTEXT = 16  # tokens that a part is decoded with on either side: decoders change the edges of a text
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Encoded:
    """One span of a text.

    Attributes:
        ids: int32 [N].
        sizes: int32 [N], the bytes of text that each token stands for; their sum is the span's.
        lossless: whether the tokens decode to the text they were made of. One space in front, which
            tokenizers add to a text or take from it, does not count.
        invalid: the first byte of the text that is no UTF-8; None where all are.
    """

    ids: Tensor
    sizes: Tensor
    lossless: bool
    invalid: int | None


def load_encoded(text: Tensor, spans: Spans, tokenizer: Any, key: str) -> list[Encoded]:
    """Every span of the bytes `text` in tokens, encoded on first use by one process while others wait.

    Args:
        key: names the files; it must change with the text, the spans or the tokenizer.

    Raises:
        ValueError: the directory `FLAGFORMER_CACHE` cannot be written.
    """
    base = cache_directory() / "tokens" / f"{key}-{VERSION}"
    try:
        if _record(base) is None:
            base.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(base.with_suffix(".lock")) as alone:
                if alone:
                    for left in base.parent.glob(f"{base.name}.*.partial"):  # of a process that was killed
                        left.unlink()
                if _record(base) is None:  # another process may have been first
                    _write(base, text, spans, tokenizer)
        return _read(base, base.with_suffix(".bin").stat().st_mtime_ns)
    except OSError as error:
        raise ValueError(
            f"`{CACHE}` must be a directory that can be written, but {error.filename or base} cannot be: "
            f"{error.strerror}"
        ) from error


def _record(base: Path) -> list[dict[str, Any]] | None:
    """What the .json says of each span; None unless both files are there and whole."""
    try:
        said = json.loads(base.with_suffix(".json").read_bytes())
        size = sum(span["count"] for span in said) * PAIR
        return said if base.with_suffix(".bin").stat().st_size == size else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _write(base: Path, text: Tensor, spans: Spans, tokenizer: Any) -> None:
    with _whole(base.with_suffix(".bin")) as file:
        said = [_encode_span(text, low, high, tokenizer, file) for low, high in spans]
    with _whole(base.with_suffix(".json")) as file:
        file.write(json.dumps(said).encode())


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A file that takes its name when all of it is on disk, and is removed otherwise."""
    partial = path.with_suffix(f".{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _encode_span(text: Tensor, low: int, high: int, tokenizer: Any, file: Any) -> dict[str, Any]:
    """Appends ids and sizes, interleaved as int32 pairs; returns the span's entry of the .json."""
    faults: list[int] = []
    chunks = read_chunks(text, low, high, faults.append)
    count, lossless = 0, True
    for before, part, after in _neighbours(windows.encode_parts(chunks, tokenizer)):
        pairs = np.empty((len(part.ids), 2), dtype="<i4")
        pairs[:, 0], pairs[:, 1] = part.ids, _sizes(part)
        file.write(pairs.tobytes())
        count += len(pairs)
        lossless = lossless and not faults and _is_lossless(tokenizer, before, part, after)
    invalid = faults[0] if faults else None
    return {"count": count, "lossless": lossless and not faults, "invalid": invalid}


def read_chunks(text: Tensor, low: int, high: int, report: Callable[[int], None]) -> Iterator[str]:
    """Bytes `low` to `high` as text, each chunk and the overlap with the one before it within a window's
    size; no character is cut. `report` is called with the place of a byte that is no UTF-8."""
    while low < high:
        end = character_border(text, min(low + windows.WINDOW - windows.OVERLAP, high), high)
        piece = text[low:end].numpy().tobytes()
        try:
            yield piece.decode()
        except UnicodeDecodeError as error:
            report(low + error.start)
            yield piece.decode(errors="replace")
        low = end


def character_border(content: Tensor, at: int, end: int) -> int:
    """The first byte from `at` on, at most `end`, that begins a character of UTF-8; after three bytes that
    go on with one, no character goes on."""
    last = min(at + 3, end)
    return next((i for i in range(at, last) if int(content[i]) & 0xC0 != 0x80), last)


def _neighbours(
    parts: Iterator[windows.Part],
) -> Iterator[tuple[windows.Part | None, windows.Part, windows.Part | None]]:
    """Each part with the one before and the one after it."""
    before, now = None, next(parts, None)
    while now is not None:
        after = next(parts, None)
        yield before, now, after
        before, now = now, after


def _sizes(part: windows.Part) -> Any:
    """Bytes from each token's first character to the next one's; what no token covers counts for the token
    before it. Tokens that share a character leave it to the last of them."""
    if not len(part.ids):
        return []
    points = np.frombuffer(part.text.encode("utf-32-le"), dtype="<u4")
    width = 1 + (points > 0x7F).astype("<i4") + (points > 0x7FF) + (points > 0xFFFF)
    ends = np.concatenate([[0], np.cumsum(width)])
    return np.diff(ends[np.maximum.accumulate([0, *part.starts[1:], len(part.text)])])


def _is_lossless(
    tokenizer: Any, before: windows.Part | None, part: windows.Part, after: windows.Part | None
) -> bool:
    """Whether the tokens of a part, decoded amid their neighbours, give its text and a character of each
    neighbour."""
    ids = part.ids.tolist()
    wanted = part.text
    if before is not None:
        ids, wanted = before.ids[-CONTEXT:].tolist() + ids, before.text[-1:] + wanted
    if after is not None:
        ids, wanted = ids + after.ids[:CONTEXT].tolist(), wanted + after.text[:1]
    back = tokenizer.decode(ids, skip_special_tokens=False)
    if before is None:
        fronts = (back, f" {back}", back.removeprefix(" "))
        return any(shown == wanted if after is None else shown.startswith(wanted) for shown in fronts)
    return back.endswith(wanted) if after is None else wanted in back


@functools.lru_cache(maxsize=4)
def _read(base: Path, modified: int) -> list[Encoded]:
    """`modified` is there so that a changed file is mapped again."""
    said = json.loads(base.with_suffix(".json").read_bytes())
    counts = [span["count"] for span in said]
    if not sum(counts):
        raise ValueError("`tokenizer` must give tokens, but it gives none for the whole text")
    with base.with_suffix(".bin").open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # never written to
    pairs = torch.frombuffer(held, dtype=torch.int32).view(-1, 2)
    return [
        Encoded(part[:, 0], part[:, 1], span["lossless"], span["invalid"])
        for part, span in zip(pairs.split(counts), said)
    ]
