"""Text in a field of records: .jsonl, .csv and .parquet files, and data sets of the package `datasets`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from flagformer.lab.data import short_hash
from flagformer.lab.data.cache import hash_of_files
from flagformer.lab.data.corpus import Corpus
from flagformer.lab.data.document_cache import Document, load_documents
from flagformer.lab.data.encoded import is_lossless, token_sizes
from flagformer.lab.data.record_files import Condition, Record, dataset_records, files_of, matches, records_in
from flagformer.lab.data.text import BYTES
from flagformer.lab.data.token_store import Collection
from flagformer.lab.data.tokens import hash_tokenizer, largest_id, read_tokenizer
from flagformer.lab.data.windows import Part

TOGETHER = 1 << 22  # characters of documents that are encoded together
LARGEST_ID = 2**31


class Records(Corpus):
    """One document a record: `field` of the records of a file, or of all files in a folder and its
    subfolders, except hidden ones, in the order of their paths.

    `source` is the kind of the files: `jsonl` (also .ndjson), `csv` (also .tsv), `parquet`, or `dataset`, a
    folder that `save_to_disk` of the package `datasets` wrote, whose splits are kept. Parquet and data sets
    need `flagformer[data]`.

    The documents are encoded once, as bytes or as tokens of a `tokenizer.json`, and cached in
    `FLAGFORMER_CACHE/documents`, which every process maps. Lists of integers are taken as token ids.
    """

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
        return short_hash(f"{self.model_dump_json(exclude=fields)} {tokenizer} {self._content()}".encode())

    def _content(self) -> str:
        if self.source != "dataset":
            return hash_of_files(files_of(self.path, self.source))
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and path.name[0] != ".")
        return hash_of_files(files)

    def _documents(self) -> Iterator[Document]:
        batch: list[tuple[int | None, str]] = []
        size = 0
        for split, record in self._kept():
            value = self._value(record)
            if not isinstance(value, str):
                yield Document(value, None, False, _hash(value.tobytes()), split)
                continue
            batch.append((split, value + self.separator))
            size += len(batch[-1][1])
            if size >= TOGETHER:
                yield from self._encoded(batch)
                batch, size = [], 0
        yield from self._encoded(batch)

    def _kept(self) -> Iterator[tuple[int | None, Record]]:
        """The records that `filter` leaves, with their splits."""
        fields = [self.field, *self.filter]
        found: Iterable[tuple[int | None, Record]]
        if self.source == "dataset":
            found = dataset_records(self.path, fields)
        else:
            files = files_of(self.path, self.source)
            found = ((None, one) for path in files for one in records_in(path, self.source, fields))
        return ((split, one) for split, one in found if matches(one, self.filter))

    def _value(self, record: Record) -> Any:
        """The text of a record, or its token ids."""
        place, fields = record
        if self.field not in fields:
            known = ", ".join(f"`{name}`" for name in fields)
            raise ValueError(
                f"`field` must be a field of every record, but {place} has no `{self.field}`: {known}"
            )
        value = fields[self.field]
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

    def _encoded(self, batch: list[tuple[int | None, str]]) -> Iterator[Document]:
        texts = [text for _, text in batch]
        if self.tokenizer is None:
            for split, text in batch:
                raw = text.encode("utf-8", errors="replace")
                yield Document(np.frombuffer(raw, dtype=np.uint8), None, True, _hash(raw), split)
            return
        tokenizer = read_tokenizer(self.tokenizer)
        for (split, text), found in zip(batch, tokenizer.encode_batch(texts, add_special_tokens=False)):
            starts = np.array([start for start, _ in found.offsets], dtype=np.int64)
            part = Part(text, np.array(found.ids, dtype=np.int32), starts)
            lossless = is_lossless(tokenizer, None, part, None)
            content = _hash(text.encode("utf-8", errors="replace"))
            yield Document(part.ids, token_sizes(part), lossless, content, split)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()
