"""Pairs of a source and a target text: two files of lines, or two fields of records."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, Source, Split, short_hash
from flagformer.lab.data.cache import hash_of_files
from flagformer.lab.data.document_cache import Document, load_documents
from flagformer.lab.data.line_files import paired_lines
from flagformer.lab.data.opened import opened_once
from flagformer.lab.data.order import numbers_of_split, rows_of_batch
from flagformer.lab.data.record_files import (
    SUFFIXES,
    Condition,
    content_files,
    digest,
    kept_records,
    text_of,
)
from flagformer.lab.data.text import BYTES
from flagformer.lab.data.token_store import Collection
from flagformer.lab.data.tokens import hash_tokenizer, largest_id, read_tokenizer

TOGETHER = 4096  # pairs that are encoded together
Pair = tuple[int | None, str, str]  # the index of a split, a source and a target


class Parallel(Source):
    """Pairs of texts, for encoder-decoders: lines of `path` and of `target_path`, or `field` and
    `target_field` of the records of a .jsonl, .csv, .tsv or .parquet file or of a data set of the package
    `datasets`.

    Both texts have one vocabulary: bytes, or the tokens of a `tokenizer.json`; then the end of a target and a
    separator. A source has `seq_len // 2` tokens at most, and a target with its end the others; longer pairs
    are dropped or cut. Shorter sources are padded and masked. In a decoder a row is the source, the separator
    and the target, of which the target is scored.

    Splits are by the hash of the source, so that equal sources are in one split, or by position; those of a
    data set are kept. The pairs are encoded once and cached in `FLAGFORMER_CACHE/documents`.
    """

    has_pairs: ClassVar[bool] = True
    pads_pairs: ClassVar[bool] = True
    metric: ClassVar[str] = "the tokens of each target and its end; accuracy: the share predicted right"

    source: Literal["parallel"]
    path: Path = Field(description="The file of the sources, or of both; a folder for a data set.")
    target_path: Path | None = Field(default=None, description="The file of the targets, line by line.")
    field: str | None = Field(default=None, description="The field with the source, of records.")
    target_field: str | None = Field(default=None, description="The field with the target, of records.")
    filter: dict[str, Condition] = Field(
        default={}, description="Fields of records and the values to keep, as in `source: jsonl`."
    )
    tokenizer: Path | None = Field(default=None, description="A tokenizer.json; default: bytes.")
    longer: Literal["drop", "cut"] = Field(
        default="drop", description="Pairs with more tokens: left out, or cut at the end."
    )
    split_by: Literal["hash", "position"] = Field(
        default="hash", description="Splits by the hash of the source, or by position: 90, 5 and 5 %."
    )

    @property
    def num_tokens(self) -> int:
        return self._vocabulary + 2

    @property
    def chance(self) -> float | None:
        return None

    @property
    def _vocabulary(self) -> int:
        return BYTES if self.tokenizer is None else 1 + largest_id(self.tokenizer)

    def check(self, split: Split, seq_len: int) -> None:
        whole, kept = len(self._pairs_of(split)), len(self._kept(split, seq_len))
        if not kept:
            reason = "it has no pair; give more, or another `split_by`"
            if whole:
                reason = f"its {whole:,} pairs are longer; raise `seq_len`, or set `longer: cut`"
            raise ValueError(
                f"the {split} part of {self.path} has no pair for `seq_len` = {seq_len}: {reason}"
            )

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        return seq_len // 2, seq_len - seq_len // 2

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Both padded by `IGNORE`."""
        first, second = self.pair_lengths(seq_len)
        sources = np.full((batch_size, first), IGNORE, dtype=np.int64)
        targets = np.full((batch_size, second), IGNORE, dtype=np.int64)
        for row, (read, wanted) in enumerate(self._rows(split, step, seed, batch_size, seq_len)):
            sources[row, : len(read)], targets[row, : len(wanted)] = read, wanted
        return torch.from_numpy(sources), torch.from_numpy(targets)

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Rows of source, separator and target."""
        rows = np.full((batch_size, seq_len + 1), self._vocabulary, dtype=np.int64)
        targets = np.full((batch_size, seq_len), IGNORE, dtype=np.int64)
        for row, (read, wanted) in enumerate(self._rows(split, step, seed, batch_size, seq_len)):
            middle = len(read)
            rows[row, :middle], rows[row, middle] = read, self._vocabulary + 1
            rows[row, middle + 1 : middle + 1 + len(wanted)] = wanted
            targets[row, middle : middle + len(wanted)] = wanted
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(targets)

    def fingerprint(self) -> str:
        tokenizer = "" if self.tokenizer is None else hash_tokenizer(self.tokenizer)
        fields = {"seq_len", "path", "target_path", "longer", "split_by", "tokenizer"}
        files = [self.path] if self._kind == "lines" else content_files(self.path, self._kind)
        files += [] if self.target_path is None else [self.target_path]
        content = f"{self.model_dump_json(exclude=fields)} {tokenizer} {hash_of_files(files)}"
        return short_hash(content.encode())

    @property
    def _kind(self) -> str:
        """The kind of the files; ValueError for fields that do not fit it."""
        if self.target_path is not None:
            if self.field or self.target_field or self.filter:
                raise ValueError("`field`, `target_field` and `filter` must be left out with `target_path`")
            return "lines"
        if self.field is None or self.target_field is None:
            raise ValueError(
                "`target_path` must name the file of the targets, or `field` and `target_field` the fields "
                f"of {self.path}, but neither is set"
            )
        if self.path.is_dir():
            return "dataset"
        kind = next((kind for kind, names in SUFFIXES.items() if self.path.suffix.lower() in names), None)
        if kind is None:
            names = ", ".join(name for names in SUFFIXES.values() for name in names)
            raise ValueError(
                f"`path` must end in {names}, or be the folder of a data set, but is {self.path}"
            )
        return kind

    def open(self) -> Collection:
        """Open the files; ValueError or OSError, with the file and the row, if one cannot be read."""
        return load_documents(self.fingerprint(), self.num_tokens, self._documents())

    def _opened(self) -> Collection:
        paths = [self.path] if self.target_path is None else [self.path, self.target_path]
        found: Collection = opened_once(self, paths, self.open)
        return found

    def _documents(self) -> Iterator[Document]:
        """Source and target of each pair, in turns; both have the hash of the source."""
        batch: list[Pair] = []
        for pair in self._texts():
            batch.append(pair)
            if len(batch) == TOGETHER:
                yield from self._encoded(batch)
                batch = []
        yield from self._encoded(batch)

    def _texts(self) -> Iterator[Pair]:
        kind = self._kind
        if self.target_path is not None:
            yield from ((None, *pair) for pair in paired_lines(self.path, self.target_path))
            return
        assert self.field is not None
        assert self.target_field is not None
        fields = [self.field, self.target_field]
        for split, record in kept_records(self.path, kind, fields, self.filter):
            yield split, text_of(record, "field", fields[0]), text_of(record, "target_field", fields[1])

    def _encoded(self, batch: list[Pair]) -> Iterator[Document]:
        texts = [text for _, *pair in batch for text in pair]
        if self.tokenizer is None:
            ids = [np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8) for text in texts]
        else:
            found = read_tokenizer(self.tokenizer).encode_batch(texts, add_special_tokens=False)
            ids = [np.array(one.ids, dtype=np.int64) for one in found]
        for number, (split, text, _) in enumerate(batch):
            key = digest(text.encode("utf-8", errors="replace"))
            for one in ids[2 * number : 2 * number + 2]:
                yield Document(one, None, False, key, split)

    def _pairs_of(self, split: Split) -> Any:
        """The numbers of the pairs of a split, int64 [N]."""
        return _pairs_of(self._opened(), split, self.split_by)

    def _kept(self, split: Split, seq_len: int) -> Any:
        """The numbers of the pairs of a split that are used, int64 [N]."""
        first, second = self.pair_lengths(seq_len)
        if self.longer == "cut":
            return self._pairs_of(split)
        return _fitting(self._opened(), split, self.split_by, first, second)

    def _rows(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> Iterator[tuple[Any, Any]]:
        """Sources, and targets with their end."""
        found, kept = self._opened(), self._kept(split, seq_len)
        if not len(kept):
            self.check(split, seq_len)
        first, second = self.pair_lengths(seq_len)
        for pair in kept[rows_of_batch(len(kept), split, step, seed, batch_size)].tolist():
            low, middle, high = found.borders[2 * pair : 2 * pair + 3].tolist()
            read = found.ids.read(low, min(first, middle - low)) if middle > low else []
            wanted = found.ids.read(middle, high - middle) if high > middle else np.empty(0, dtype=np.int64)
            yield read, np.append(wanted, self._vocabulary)[:second]


@functools.lru_cache(maxsize=8)
def _pairs_of(found: Collection, split: Split, by: str) -> Any:
    files = None if found.files is None else found.files[::2]
    by = by if files is None else "files"
    return numbers_of_split(split, len(found.borders) // 2, by, found.hashes[::2], files)


@functools.lru_cache(maxsize=8)
def _fitting(found: Collection, split: Split, by: str, first: int, second: int) -> Any:
    """The pairs with at most `first` tokens in the source, and with the end `second` in the target."""
    numbers, lengths = _pairs_of(found, split, by), np.diff(found.borders)
    return numbers[(lengths[::2][numbers] <= first) & (lengths[1::2][numbers] < second)]
