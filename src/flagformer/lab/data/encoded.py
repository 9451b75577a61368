"""A text as token ids: encoded once, cached on disk, and memory-mapped by every process that reads it."""

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
from flagformer.lab.data.cache import cache_directory, writing_to
from flagformer.lab.data.lock import made_once

VERSION = 2  # of the files; a new number invalidates the cache
PAIR = 8  # bytes of an id with its size
CONTEXT = 16  # neighbouring tokens with which a part is decoded, as decoders change the ends of a text
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Encoded:
    """One span of a text.

    Attributes:
        ids: int32 [N].
        sizes: int32 [N], bytes of text per token; their sum is the size of the span.
        lossless: whether the tokens decode to the original text, except for one space at its start, which
            tokenizers add or remove.
        invalid: the index of the first byte that is not UTF-8; None if there is none.
    """

    ids: Tensor
    sizes: Tensor
    lossless: bool
    invalid: int | None


def load_encoded(text: Tensor, spans: Spans, tokenizer: Any, key: str) -> list[Encoded]:
    """The tokens of each span of the bytes `text`. One process encodes them on first use, others wait.

    Args:
        key: the name of the files; it must differ for other texts, spans or tokenizers.

    Raises:
        ValueError: the directory `FLAGFORMER_CACHE` is not writable.
    """
    base = cache_directory() / "tokens" / f"{key}-{VERSION}"
    with writing_to(base):
        made_once(
            base,
            base.with_suffix(".lock"),
            lambda: _record(base) is not None,
            lambda: _write(base, text, spans, tokenizer),
        )
        return _read(base, base.with_suffix(".bin").stat().st_mtime_ns)


def _record(base: Path) -> list[dict[str, Any]] | None:
    """The entries of the .json, one per span; None unless both files exist and are complete."""
    try:
        entries = json.loads(base.with_suffix(".json").read_bytes())
        size = sum(span["count"] for span in entries) * PAIR
        return entries if base.with_suffix(".bin").stat().st_size == size else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _write(base: Path, text: Tensor, spans: Spans, tokenizer: Any) -> None:
    with _atomic(base.with_suffix(".bin")) as file:
        entries = [_encode_span(text, low, high, tokenizer, file) for low, high in spans]
    with _atomic(base.with_suffix(".json")) as file:
        file.write(json.dumps(entries).encode())


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Any]:
    """A file that is renamed to `path` once it is complete on disk; it is removed after an error."""
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
    """Append ids and sizes, interleaved as int32 pairs; return the entry of the span in the .json."""
    faults: list[int] = []
    chunks = read_chunks(text, low, high, faults.append)
    count, lossless = 0, True
    for before, part, after in _neighbours(windows.encode_parts(chunks, tokenizer)):
        pairs = np.empty((len(part.ids), 2), dtype="<i4")
        pairs[:, 0], pairs[:, 1] = part.ids, token_sizes(part)
        file.write(pairs.tobytes())
        count += len(pairs)
        lossless = lossless and not faults and is_lossless(tokenizer, before, part, after)
    invalid = faults[0] if faults else None
    return {"count": count, "lossless": lossless and not faults, "invalid": invalid}


def read_chunks(text: Tensor, low: int, high: int, report: Callable[[int], None]) -> Iterator[str]:
    """Bytes `low` to `high` as text, in chunks that fit into a window together with the overlap; no character
    is cut. `report` is called with the index of a byte that is not UTF-8."""
    while low < high:
        end = character_border(text, min(low + windows.WINDOW - windows.OVERLAP, high), high)
        chunk = text[low:end].numpy().tobytes()
        try:
            yield chunk.decode()
        except UnicodeDecodeError as error:
            report(low + error.start)
            yield chunk.decode(errors="replace")
        low = end


def character_border(content: Tensor, at: int, end: int) -> int:
    """The index of the first byte in `at` to `end` that begins a UTF-8 character; at most three bytes
    continue a character."""
    last = min(at + 3, end)
    return next((i for i in range(at, last) if int(content[i]) & 0xC0 != 0x80), last)


def _neighbours(
    parts: Iterator[windows.Part],
) -> Iterator[tuple[windows.Part | None, windows.Part, windows.Part | None]]:
    """Each part with its predecessor and successor."""
    before, now = None, next(parts, None)
    while now is not None:
        after = next(parts, None)
        yield before, now, after
        before, now = now, after


def token_sizes(part: windows.Part) -> Any:
    """Bytes from the first character of each token to that of the next. Characters without a token count for
    the token before them; a character of several tokens counts for the last of them."""
    if not len(part.ids):
        return []
    points = np.frombuffer(part.text.encode("utf-32-le"), dtype="<u4")
    width = 1 + (points > 0x7F).astype("<i4") + (points > 0x7FF) + (points > 0xFFFF)
    ends = np.concatenate([[0], np.cumsum(width)])
    return np.diff(ends[np.maximum.accumulate([0, *part.starts[1:], len(part.text)])])


def is_lossless(
    tokenizer: Any, before: windows.Part | None, part: windows.Part, after: windows.Part | None
) -> bool:
    """Whether the tokens of a part, decoded together with neighbouring tokens, give its text and the adjacent
    character of each neighbour."""
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
    """The spans of the files; `modified` is part of the cache key, so that a changed file is mapped again."""
    entries = json.loads(base.with_suffix(".json").read_bytes())
    counts = [span["count"] for span in entries]
    if not sum(counts):
        raise ValueError("`tokenizer` must give tokens, but it gives none for the whole text")
    with base.with_suffix(".bin").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # never written to
    pairs = torch.frombuffer(mapped, dtype=torch.int32).view(-1, 2)
    return [
        Encoded(part[:, 0], part[:, 1], span["lossless"], span["invalid"])
        for part, span in zip(pairs.split(counts), entries)
    ]
