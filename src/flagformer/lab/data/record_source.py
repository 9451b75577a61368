"""Text in a field of records: .jsonl, .csv and .parquet files, and data sets of the package `datasets`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_serializer
from torch import Tensor

from flagformer.lab.data import IGNORE, Split, short_hash
from flagformer.lab.data.cache import hash_of_files
from flagformer.lab.data.corpus import Corpus
from flagformer.lab.data.document_cache import Document, load_documents
from flagformer.lab.data.encoded import is_lossless, token_sizes
from flagformer.lab.data.order import numbers_of_split, rows_of_batch
from flagformer.lab.data.record_files import (
    Condition,
    Record,
    content_files,
    digest,
    kept_records,
    value_of,
)
from flagformer.lab.data.text import BYTES
from flagformer.lab.data.token_store import Collection
from flagformer.lab.data.tokens import hash_tokenizer, largest_id, read_tokenizer
from flagformer.lab.data.windows import Part

TOGETHER = 1 << 22  # characters of documents that are encoded together
LARGEST_ID = 2**31
Labelled = tuple[int | None, str, str | None]  # the index of a split, a text and its class


class Records(Corpus):
    """One document a record: `field` of the records of a file, or of all files in a folder and its
    subfolders, except hidden ones, in the order of their paths.

    `source` is the kind of the files: `jsonl` (also .ndjson), `csv` (also .tsv), `parquet`, or `dataset`, a
    folder that `save_to_disk` of the package `datasets` wrote, whose splits are kept. Parquet and data sets
    need `flagformer[data]`.

    The documents are encoded once, as bytes or as tokens of a `tokenizer.json`, and cached in
    `FLAGFORMER_CACHE/documents`, which every process maps. Lists of integers are taken as token ids.
    """

    pads_classified: ClassVar[bool] = True

    source: Literal["jsonl", "csv", "parquet", "dataset"]
    field: str = Field(description="The field with the text, or with lists of token ids.")
    filter: dict[str, Condition] = Field(
        default={},
        description="Fields and the values to keep: a value, a list of values, a comparison such as `>= 0.5` "
        "or `!= en`, or `not null`; a record must meet all.",
    )
    tokenizer: Path | None = Field(default=None, description="A tokenizer.json; default: bytes.")
    separator: str = Field(
        default="\n\n",
        description="Text after each document, encoded with it; a special token such as <|endoftext|> is one "
        "token of a tokenizer that has it.",
    )
    vocabulary: int | None = Field(
        default=None, ge=1, le=LARGEST_ID, description="Size of the vocabulary of lists of token ids."
    )

    label: str | None = Field(
        default=None,
        description="The field with the class of a record, for sequence classification; splits are then by "
        "hash where nothing else is set.",
    )

    @model_serializer(mode="wrap")
    def _without_no_label(self, dump: Any) -> dict[str, Any]:
        """Without a label, settings and caches are those of earlier versions."""
        found: dict[str, Any] = dump(self)
        if self.label is None:
            found.pop("label", None)
        return found

    @property
    def usual_split(self) -> str:
        return "position" if self.label is None else "hash"

    @property
    def num_tokens(self) -> int:
        if self.vocabulary is not None:
            return self.vocabulary
        return BYTES if self.tokenizer is None else 1 + largest_id(self.tokenizer)

    def open(self) -> Collection:
        if self.vocabulary is not None and self.tokenizer is not None:
            raise ValueError("`vocabulary` and `tokenizer` cannot be combined: leave `vocabulary` out")
        return load_documents(self.fingerprint(), self.num_tokens, self._documents())

    def fingerprint(self) -> str:
        tokenizer = "" if self.tokenizer is None else hash_tokenizer(self.tokenizer)
        fields = {"seq_len", "path", "packing", "order", "split_by", "tokenizer"}
        content = hash_of_files(content_files(self.path, self.source))
        return short_hash(f"{self.model_dump_json(exclude=fields)} {tokenizer} {content}".encode())

    def _documents(self) -> Iterator[Document]:
        batch: list[Labelled] = []
        size = 0
        for split, record in self._kept():
            value, label = self._value(record), self._label(record)
            if not isinstance(value, str):
                yield Document(value, None, False, digest(value.tobytes()), split, label)
                continue
            batch.append((split, value + self.separator, label))
            size += len(value)
            if size >= TOGETHER:
                yield from self._encoded(batch)
                batch, size = [], 0
        yield from self._encoded(batch)

    def _kept(self) -> Iterator[tuple[int | None, Record]]:
        """The records that `filter` leaves, with their splits."""
        fields = [self.field, *([] if self.label is None else [self.label])]
        return kept_records(self.path, self.source, fields, self.filter)

    def _label(self, record: Record) -> str | None:
        """The class of a record, as text."""
        if self.label is None:
            return None
        value = value_of(record, "label", self.label)
        if not isinstance(value, str | int | bool) or value == "":
            raise ValueError(
                f"`{self.label}` must be a class in every record, a text or an integer, but {record[0]} "
                f"holds {value!r:.40}; `filter: {{{self.label}: not null}}` leaves records without one out"
            )
        return str(value)

    def _value(self, record: Record) -> Any:
        """The text of a record, or its token ids."""
        place, value = record[0], value_of(record, "field", self.field)
        if self.vocabulary is None and isinstance(value, str):
            return value
        if self.vocabulary is not None and isinstance(value, list) and all(type(one) is int for one in value):
            wrong = [one for one in value if not 0 <= one < self.vocabulary]
            if wrong:
                raise ValueError(
                    f"`vocabulary` must be more than every token id, but is {self.vocabulary}, and {place} "
                    f"has {wrong[0]}"
                )
            return np.array(value, dtype=np.int64)
        wanted = "text" if self.vocabulary is None else "a list of token ids"
        hint = f"; `filter: {{{self.field}: not null}}` leaves such records out" if value is None else ""
        if self.vocabulary is None and isinstance(value, list):
            hint = "; set `vocabulary` if these are token ids"
        raise ValueError(
            f"`{self.field}` must be {wanted} in every record, but {place} holds {value!r:.40}{hint}"
        )

    def _encoded(self, batch: list[Labelled]) -> Iterator[Document]:
        texts = [text for _, text, _ in batch]
        if self.tokenizer is None:
            for split, text, label in batch:
                raw = text.encode("utf-8", errors="replace")
                yield Document(np.frombuffer(raw, dtype=np.uint8), None, True, digest(raw), split, label)
            return
        tokenizer = read_tokenizer(self.tokenizer)
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        for (split, text, label), one in zip(batch, found):
            starts = np.array([start for start, _ in one.offsets], dtype=np.int64)
            part = Part(text, np.array(one.ids, dtype=np.int32), starts)
            lossless = is_lossless(tokenizer, None, part, None)
            content = digest(text.encode("utf-8", errors="replace"))
            yield Document(part.ids, token_sizes(part), lossless, content, split, label)

    @property
    def num_classes(self) -> int | None:
        return None if self.label is None else len(self._opened().classes)

    def classified(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """The first `seq_len` tokens of documents, padded by `IGNORE`."""
        if self.label is None:
            return super().classified(split, step, seed, batch_size, seq_len)
        found, numbers = self._opened(), self._numbers(split)
        rows = np.full((batch_size, seq_len), IGNORE, dtype=np.int64)
        which = numbers[rows_of_batch(len(numbers), split, step, seed, batch_size, self.order)]
        for row, number in enumerate(which.tolist()):
            low, high = found.borders[number : number + 2].tolist()
            count = min(seq_len, high - low)
            rows[row, :count] = found.ids.read(low, count)
            if not 0 <= rows[row, :count].min() <= rows[row, :count].max() < self.num_tokens:
                found.ids.refuse(low, count, self.num_tokens)
        return torch.from_numpy(rows), torch.from_numpy(found.labels[which].astype(np.int64))[:, None]

    def _numbers(self, split: Split) -> Any:
        """The numbers of the documents of a split, int64 [N], at least one.

        Raises:
            ValueError: the split has no document, or training has a single class.
        """
        found = self._opened()
        numbers = _documents_of(found, split, self._split_by())
        if not len(numbers):
            raise ValueError(
                f"the {split} part of {self.path} has no document; give more records, or another `split_by`"
            )
        if split == "train" and len(np.unique(found.labels[numbers])) < 2:
            raise ValueError(
                f"`{self.label}` must have several classes in the train part of {self.path}, but all are "
                f"{found.classes[int(found.labels[numbers[0]])]!r}; use `split_by: hash` or another `label`"
            )
        return numbers


@functools.lru_cache(maxsize=8)
def _documents_of(found: Collection, split: Split, by: str) -> Any:
    lengths = np.diff(found.borders)
    numbers = numbers_of_split(split, len(lengths), by, found.hashes, found.files)
    return numbers[lengths[numbers] > 0]
