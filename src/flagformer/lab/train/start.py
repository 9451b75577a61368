"""Training that starts from a model: its directory, a digest of it, and grafted flags."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from flagformer.interop.graft import check_graft, graft
from flagformer.interop.load import meta_model, open_model

JSON = ("config.json", "flags.json", "model.safetensors.index.json")
TOKENIZER = "tokenizer.json"
LARGEST_HEADER = 100 << 20  # bytes, the limit of safetensors
PIECE, PIECES = 4096, 16  # bytes of a tensor that are hashed


class Start(BaseModel):
    """A directory of `save_pretrained` of transformers or of `model.save`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="The directory.")
    digest: str = Field(description="Of its config, its index and a sample of each tensor.")

    @staticmethod
    def of(directory: str | Path) -> Start:
        """The start with the present digest; ValueError for a path that is no directory."""
        return Start(path=str(directory), digest=content_digest(Path(directory)))

    def refuse_changed(self) -> None:
        """ValueError if the directory has other contents."""
        if content_digest(Path(self.path)) != self.digest:
            raise ValueError(
                f"`from` is {self.path}, whose contents have changed since the first run (digest "
                f"{self.digest}); restore them, or use another run directory"
            )

    def checked(self, flags: Mapping[str, Any]) -> Any:
        """The model with these flags on torch's meta device.

        Raises:
            FlagError: for flags that cannot be grafted.
            ValueError: for a directory that cannot be loaded.
        """
        model = _meta_model(self.path, self.digest)
        return check_graft(model, flags, self.path) if flags else model

    def build(self, flags: Mapping[str, Any]) -> Any:
        """The model with these flags in fp32, with its attribute `graft`; new parameters are random."""
        self.refuse_changed()
        return graft(open_model(Path(self.path), torch.float32), flags, self.path)


@functools.lru_cache(maxsize=4)
def _meta_model(path: str, digest: str) -> Any:
    return meta_model(Path(path))


def content_digest(directory: Path) -> str:
    """16 hexadecimal digits of a hash of the JSON files, of the headers of safetensors files and of at most
    64 KiB of each tensor.

    Raises:
        ValueError: for a path that is no directory with a model.
    """
    if not directory.is_dir():
        fault = "is a file" if directory.exists() else f"is not there (seen from {Path.cwd()})"
        raise ValueError(f"`from` must be the directory of a model, but {directory} {fault}")
    weights = sorted(directory.glob("*.safetensors"))
    files = [*(directory / name for name in JSON if (directory / name).is_file()), *weights]
    if not weights:
        raise ValueError(
            f"`from` must be the directory of a model, with safetensors files, but {directory} has none"
        )
    states = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _digest(states)


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Size and time are part of the cache key, so that a changed file is read again."""
    digest = hashlib.sha256()
    for name, size, _ in files:
        path = Path(name)
        digest.update(f"{path.name} {size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
        else:
            _add_tensors(digest, path, size)
    return digest.hexdigest()[:16]


def _add_tensors(digest: Any, path: Path, size: int) -> None:
    """Add the header of a safetensors file, and pieces of each tensor; of a damaged file the first bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, LARGEST_HEADER))
        digest.update(header)
        try:
            entries = [
                entry["data_offsets"] for entry in json.loads(header).values() if "data_offsets" in entry
            ]
            spans = sorted((int(begin), int(end)) for begin, end in entries)
        except (ValueError, TypeError, KeyError, AttributeError):
            spans = []  # loading reports it
        for begin, end in spans:
            for offset in _offsets(end - begin):
                file.seek(8 + length + begin + offset)
                digest.update(file.read(min(PIECE, end - begin - offset)))


def _offsets(size: int) -> list[int]:
    """The first bytes of the pieces of a tensor; they cover a small one."""
    if size <= PIECE * PIECES:
        return list(range(0, size, PIECE))
    return [(size - PIECE) * index // (PIECES - 1) for index in range(PIECES)]
