"""Files of token ids: raw .bin, llm.c's and Megatron's .bin, .npy and .safetensors, memory-mapped."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".bin", ".npy", ".safetensors")
DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")
# llm.c's and modded-nanogpt's files begin with 256 int32: magic number, version, number of tokens.
HEADER = 256 * 4
HEADERS = {20240520: "<u2", 20240801: "<u4"}  # of GPT-2's and of Llama 3's ids
MEGATRON = b"MMIDIDX\x00\x00"
MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
SAFETENSORS = {"U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8"}
MAX_HEADER = 1 << 20


@dataclass(frozen=True)
class Shard:
    """The token ids of one file.

    Attributes:
        ids: integers [N], memory-mapped.
        borders: int64 [D + 1], where documents begin and end; None: the file does not say.
    """

    path: Path
    ids: Any
    borders: Any = None


def open_shard(path: Path, dtype: str | None, tensor: str | None) -> Shard:
    """Map one file.

    Args:
        dtype: of a .bin without a header or an index; None: uint16.
        tensor: the tensor of a .safetensors file; None: the only one of integers.

    Raises:
        ValueError: the file is damaged, or is no file of token ids.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _numpy(path)
    if suffix == ".safetensors":
        return _safetensors(path, tensor)
    if path.with_suffix(".idx").exists():
        return _megatron(path, path.with_suffix(".idx"))
    return _raw(path, dtype)


def _raw(path: Path, dtype: str | None) -> Shard:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER)
    magic, version, count = struct.unpack("<3i", head[:12]) if len(head) == HEADER else (0, 0, 0)
    if magic in HEADERS:
        kind = np.dtype(HEADERS[magic])
        if dtype is not None and np.dtype(dtype) != kind:
            raise ValueError(f"`dtype` must be {kind.name} or left out, as the header of {path} says")
        return Shard(path, mapped(path, kind, HEADER, count & 0xFFFFFFFF, f"its header (version {version})"))
    kind = np.dtype(dtype or "uint16")
    if size % kind.itemsize:
        raise ValueError(
            f"`path` must be a file of whole {kind.name} ids, but {path} has {size:,} bytes; it is cut off, "
            "or has another `dtype`"
        )
    return Shard(path, mapped(path, kind, 0, size // kind.itemsize, "its size"))


def _megatron(path: Path, index: Path) -> Shard:
    content = index.read_bytes()
    if len(content) < 34 or content[:9] != MEGATRON:
        raise ValueError(f"{index} must be an index of Megatron's for {path.name}, but does not begin as one")
    version, code, sequences, documents = struct.unpack("<QBQQ", content[9:34])
    if version != 1 or code not in MEGATRON_DTYPES:
        raise ValueError(
            f"{index} must be an index of version 1 of integers, but has version {version} and dtype {code}"
        )
    if len(content) < 34 + 12 * sequences + 8 * documents:
        raise ValueError(
            f"{index} is cut off: it has {len(content):,} bytes, and {sequences:,} sequences with "
            f"{documents:,} borders of documents need {34 + 12 * sequences + 8 * documents:,}"
        )
    kind = np.dtype(MEGATRON_DTYPES[code])
    sizes = np.frombuffer(content, "<i4", sequences, 34).astype(np.int64)
    pointers = np.frombuffer(content, "<i8", sequences, 34 + 4 * sequences)
    border = np.frombuffer(content, "<i8", documents, 34 + 12 * sequences)
    ends = np.cumsum(sizes)
    wrong = np.flatnonzero((pointers != (ends - sizes) * kind.itemsize) | (sizes < 0))
    if len(wrong):
        raise ValueError(
            f"sequence {int(wrong[0]):,} of {index} must follow the one before it, but does not; write the "
            "file again"
        )
    if len(border) and (border[0] != 0 or border[-1] != sequences or (np.diff(border) < 0).any()):
        raise ValueError(f"the documents of {index} must cover its {sequences:,} sequences in order")
    count = int(ends[-1]) if sequences else 0
    ids = mapped(path, kind, 0, count, f"its index {index.name}")
    return Shard(path, ids, np.concatenate([[0], ends])[border] if len(border) > 1 else None)


def _numpy(path: Path) -> Shard:
    try:
        ids = np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"`path` must be arrays of token ids, but {path} cannot be read: {error}") from None
    if ids.dtype.kind not in "ui" or ids.ndim not in (1, 2):
        found = f"{ids.dtype} of shape {list(ids.shape)}"
        raise ValueError(f"{path} must hold integers of shape [N], or [rows, N] of documents, but is {found}")
    if ids.ndim == 1:
        return Shard(path, ids)
    borders = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
    return Shard(path, np.reshape(ids, -1), borders)


def _safetensors(path: Path, tensor: str | None) -> Shard:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, MAX_HEADER))
    try:
        entries = {name: one for name, one in json.loads(header).items() if name != "__metadata__"}
        integers = [name for name, one in entries.items() if one["dtype"] in SAFETENSORS]
        name = tensor if tensor is not None else integers[0] if len(integers) == 1 else None
        if name is None or name not in integers:
            found = ", ".join(f"`{one}`" for one in integers[:9]) or "none"
            raise ValueError(f"`tensor` must name the integers of {path} to read; it has {found}")
        entry = entries[name]
        begin, shape = entry["data_offsets"][0], entry["shape"]
        if not all(isinstance(one, int) and one >= 0 for one in (begin, *shape)):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{path} must be a .safetensors file, but its header is damaged") from None
    if len(shape) not in (1, 2):
        raise ValueError(
            f"`{name}` of {path} must have shape [N], or [rows, N] of documents, but has {shape}"
        )
    count = int(np.prod(shape))
    ids = mapped(path, np.dtype(SAFETENSORS[entry["dtype"]]), 8 + size + begin, count, "its header")
    borders = None if len(shape) == 1 else np.arange(shape[0] + 1, dtype=np.int64) * shape[1]
    return Shard(path, ids, borders)


def mapped(path: Path, kind: Any, offset: int, count: int, source: str) -> Any:
    """`count` numbers from byte `offset` on; ValueError if the file is shorter than `source` says."""
    size = path.stat().st_size
    if size < offset + count * kind.itemsize:
        raise ValueError(
            f"{path} is cut off: {source} says {count:,} {kind.name} ids, {offset + count * kind.itemsize:,} "
            f"bytes, but it has {size:,}"
        )
    if not count:
        return np.empty(0, dtype=kind)
    # a plain array: each slice of a memmap takes microseconds
    return np.asarray(np.memmap(path, dtype=kind, mode="r", offset=offset, shape=(count,)))
