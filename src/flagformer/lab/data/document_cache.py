"""Documents as token ids in one directory of the cache: written once, memory-mapped by every process."""

from __future__ import annotations

import json
import secrets
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flagformer.lab.data.cache import cache_directory, writing_to
from flagformer.lab.data.lock import made_once
from flagformer.lab.data.shard_files import mapped
from flagformer.lab.data.token_store import Collection, Ones, TokenStore, named_splits

MOST_CLASSES = 100_000
VERSION = 1  # of the files; a new number invalidates the cache


@dataclass(frozen=True)
class Document:
    """One document in tokens.

    Attributes:
        ids: integers [N].
        sizes: integers [N], bytes of text of each token; None: one each.
        lossless: whether the tokens encode the text; False for documents that are token ids.
        hash: 8 bytes, of the content.
        split: index of the split that its file names; None if files name none.
        label: its class, as text; None without classes.
    """

    ids: Any
    sizes: Any
    lossless: bool
    hash: bytes
    split: int | None
    label: str | None = None


def load_documents(key: str, vocabulary: int, documents: Iterable[Document]) -> Collection:
    """The documents under this key, from the cache; on first use `documents` is read and written there.

    Raises:
        ValueError: there are no tokens, or the directory `FLAGFORMER_CACHE` is not writable.
    """
    folder = cache_directory() / "documents" / f"{key}-{VERSION}"
    with writing_to(folder):
        made_once(
            folder,
            folder.with_name(f"{folder.name}.lock"),
            (folder / "record.json").exists,
            lambda: _write(folder, vocabulary, documents),
        )
        return _read(folder)


def _write(folder: Path, vocabulary: int, documents: Iterable[Document]) -> None:
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}.partial")
    partial.mkdir()
    kind = np.dtype("<u1" if vocabulary <= 1 << 8 else "<u2" if vocabulary <= 1 << 16 else "<u4")
    try:
        borders, hashes, splits = array("q", [0]), bytearray(), bytearray()
        labels, classes = array("q"), dict[str, int]()
        lossless, sized = True, False
        with ExitStack() as entered:
            ids = entered.enter_context((partial / "ids.bin").open("xb"))
            sizes = entered.enter_context((partial / "sizes.bin").open("xb"))
            for one in documents:
                ids.write(np.asarray(one.ids).astype(kind).tobytes())
                lossless, sized = lossless and one.lossless, sized or one.sizes is not None
                if one.sizes is not None:
                    sizes.write(np.asarray(one.sizes).astype("<u4").tobytes())
                borders.append(borders[-1] + len(one.ids))
                hashes += one.hash
                if one.split is not None:
                    splits.append(one.split)
                if one.label is not None:
                    labels.append(classes.setdefault(one.label, len(classes)))
        if not borders[-1]:
            raise ValueError(
                "`field` must hold text in some record that `filter` leaves, but no token is left"
            )
        np.save(partial / "borders.npy", np.frombuffer(borders, dtype=np.int64))
        np.save(partial / "hashes.npy", np.frombuffer(hashes, dtype="<u8"))
        np.save(partial / "splits.npy", np.frombuffer(splits, dtype=np.int8))
        names = _write_labels(partial, np.frombuffer(labels, dtype=np.int64), list(classes))
        entry = {"count": borders[-1], "dtype": kind.str, "lossless": lossless, "sized": sized, **names}
        (partial / "record.json").write_text(json.dumps(entry))
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_labels(folder: Path, labels: Any, classes: list[str]) -> dict[str, Any]:
    """Write the class of each document, as an index of the sorted classes; return the entry of the record."""
    if not classes:
        return {}
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise ValueError(
            f"`label` must have from 2 to {MOST_CLASSES:,} classes, but has {len(classes):,}, such as "
            f"{classes[0]!r:.40}"
        )
    are_numbers = all(name.lstrip("-").isdecimal() for name in classes)
    names = sorted(classes, key=int) if are_numbers else sorted(classes)
    new = {name: number for number, name in enumerate(names)}
    np.save(folder / "labels.npy", np.array([new[name] for name in classes])[labels])
    return {"classes": names}


def _read(folder: Path) -> Collection:
    entry = json.loads((folder / "record.json").read_bytes())
    borders, hashes, splits = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _tables())
    count = entry["count"]
    ids = TokenStore(
        [(folder / "ids.bin", mapped(folder / "ids.bin", np.dtype(entry["dtype"]), 0, count, "it"))]
    )
    sizes: Any = None
    if entry["lossless"]:
        path = folder / "sizes.bin"
        bytes_each = mapped(path, np.dtype("<u4"), 0, count, "it") if entry["sized"] else Ones(count)
        sizes = TokenStore([(path, bytes_each)])
    labels = np.load(folder / "labels.npy", mmap_mode="r") if "classes" in entry else None
    files = named_splits(splits) if len(splits) else None
    return Collection(ids, borders, sizes, hashes, files, labels, tuple(entry.get("classes", ())))


def _tables() -> Iterator[str]:
    yield from ("borders", "hashes", "splits")
