"""Files of token ids made elsewhere."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from flagformer.lab.data import short_hash
from flagformer.lab.data.corpus import Corpus
from flagformer.lab.data.shard_files import SUFFIXES, Shard, open_shard
from flagformer.lab.data.token_store import Collection, TokenStore, named_splits

SCAN = 1 << 22  # ids in which borders are searched at once
SAMPLES, SAMPLE = 16, 4096  # of a file, in its fingerprint
# words in names of files and folders: the splits they stand for
NAMES = {0: ("train", "training"), 1: ("val", "valid", "validation", "dev", "eval"), 2: ("test", "testing")}


class Shards(Corpus):
    """Token ids that another program has written: one file, or all .bin, .npy and .safetensors files of a
    folder and its subfolders, except hidden ones, in the order of their paths.

    A .bin is raw ids (nanoGPT), ids with the header of llm.c and modded-nanogpt, or Megatron's with its .idx.
    Arrays and tensors of shape [rows, N] hold a document in each row. Files are memory-mapped: a run reads no
    more than its rows, and every row is checked for ids outside of the vocabulary.

    Quality is in nats per token: the bytes of text are not known. The fingerprint is of names, sizes, and
    samples of each file.
    """

    document_hint: ClassVar[str] = "name the id that ends or begins each one in `eos` or `bos`"

    source: Literal["shards"]
    vocabulary: int = Field(ge=1, le=2**31, description="Size of the vocabulary: the largest id plus one.")
    dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] | None = Field(
        default=None, description="Of .bin files without a header or an index; default: uint16."
    )
    tensor: str | None = Field(
        default=None, description="The tensor of .safetensors files; default: the only one of integers."
    )
    eos: int | None = Field(default=None, ge=0, description="The id that ends each document.")
    bos: int | None = Field(default=None, ge=0, description="The id that begins each document.")

    @property
    def num_tokens(self) -> int:
        return self.vocabulary

    def open(self) -> Collection:
        if self.eos is not None and self.bos is not None:
            raise ValueError("`eos` and `bos` cannot be combined: name the one that borders documents")
        shards = [open_shard(path, self.dtype, self.tensor) for path in self._files()]
        shards = [shard for shard in shards if len(shard.ids)]
        if not shards:
            raise ValueError(f"`path` must hold token ids, but the files of {self.path} are empty")
        ids = TokenStore([(shard.path, shard.ids) for shard in shards])
        splits = _splits_of(shards, self.path)
        found = [self._borders(shard) for shard in shards]
        borders = None
        if any(one is not None for one in found):
            parts = [
                start + (np.zeros(1, dtype=np.int64) if one is None else one[:-1])
                for one, start in zip(found, ids.starts)
            ]
            borders = np.concatenate([*parts, [len(ids)]])
            if splits is not None:
                splits = np.repeat(splits, [len(part) for part in parts])
        hashes = _hashes(ids, borders) if self.split_by == "hash" and borders is not None else None
        return Collection(ids, borders, None, hashes, splits)

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            files = [self.path]
        else:
            inside = ((path, path.relative_to(self.path)) for path in self.path.rglob("*"))
            files = sorted(p for p, name in inside if not any(part[0] == "." for part in name.parts))
        files = [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not files:
            raise ValueError(
                f"`path` must hold files of token ids ({', '.join(SUFFIXES)}), but is {self.path}"
            )
        return files

    def _borders(self, shard: Shard) -> np.ndarray | None:
        """The borders of a file's documents, int64 [D + 1]."""
        mark = self.bos if self.eos is None else self.eos
        if mark is None or shard.borders is not None:
            return shard.borders
        found = [np.zeros(1, dtype=np.int64)]
        for start in range(0, len(shard.ids), SCAN):
            where = np.flatnonzero(shard.ids[start : start + SCAN] == mark) + start
            found.append(where + (self.eos is not None))
        return np.unique(np.concatenate([*found, [len(shard.ids)]]))

    def fingerprint(self) -> str:
        state = hashlib.sha256(self.model_dump_json(exclude={"seq_len", "path"}).encode())
        for path in self._files():
            for part in (path, path.with_suffix(".idx")):
                if part.is_file():
                    size = part.stat().st_size
                    state.update(f"{part.name} {size}".encode())
                    with part.open("rb") as file:
                        for number in range(SAMPLES):
                            file.seek(max(0, size - SAMPLE) * number // (SAMPLES - 1))
                            state.update(file.read(SAMPLE))
        return short_hash(state.digest())


def _splits_of(shards: list[Shard], root: Path) -> np.ndarray | None:
    """The split of each file by the words of its path, as in `Collection.files`; None if a file has none."""
    found = []
    for shard in shards:
        name = str(shard.path.relative_to(root) if root.is_dir() else shard.path.name)
        words = set(re.split(r"[^a-z]+", name.lower()))
        found.append(next((split for split, known in NAMES.items() if words & set(known)), None))
    return None if None in found else named_splits(np.array(found))


def _hashes(ids: TokenStore, borders: np.ndarray) -> np.ndarray:
    """A hash of the content of each document, uint64 [N]."""
    digests = (
        hashlib.blake2b(ids.read(low, high - low).tobytes(), digest_size=8).digest()
        for low, high in itertools.pairwise(borders.tolist())
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")
