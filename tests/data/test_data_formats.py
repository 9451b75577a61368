"""Files that hold no plain text are refused by name, and records are read by field."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from flagformer.data.file import TextFile, bytes_of

TEXT = "of the people, by the people, for the people;\n" * 400
NOISE = random.Random(0).randbytes(20_000)


def npy() -> bytes:
    held = io.BytesIO()
    np.save(held, np.arange(3000, dtype=np.uint16))
    return held.getvalue()


def packed() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("a.txt", TEXT)
    return held.getvalue()


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
BINARY = {
    "gzip": gzip.compress(TEXT.encode()),
    "bzip2": bz2.compress(NOISE),
    "xz": lzma.compress(TEXT.encode()),
    "Zstandard": b"\x28\xb5\x2f\xfd" + NOISE,
    "zip": packed(),
    "Parquet": b"PAR1" + NOISE + b"PAR1",
    "Arrow": b"ARROW1\x00\x00" + NOISE,
    "safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(4),
    "NumPy": npy(),
    "pickle": pickle.dumps(TEXT),
    "GGUF": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + NOISE,
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "is binary": np.random.default_rng(0).integers(0, 50257, 5000).astype("<u2").tobytes(),
    "is binary ": TEXT.encode("utf-16-le"),
    "tokenizer.json": json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}}}
    ).encode(),
}


@pytest.mark.parametrize("name", BINARY)
def test_what_is_no_text_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(BINARY[name])
    for where in (path, tmp_path):  # alone, and in a folder
        with pytest.raises(ValueError, match=f"`path` must be a file of text, but .*data.*{name.strip()}"):
            TextFile(source="file", path=where).check("train", 32)


@pytest.mark.parametrize(
    "content",
    [TEXT.encode("latin-1").replace(b"e", b"\xe9"), b"PAR1 of " + TEXT.encode(), b"BZh" + TEXT.encode(),
     b"a\x00" + TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode()],
)  # fmt: skip
def test_text_in_other_encodings_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    assert bytes(bytes_of(tmp_path / "text").tolist()) == content


ROWS = [{"text": "first, \u20ac", "n": "1"}, {"text": 'second "quoted"\nline', "n": "2"}]


def table(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        cells = [["text", "n"], *([row["text"].replace('"', '""'), row["n"]] for row in ROWS)]
        path.write_text("".join(f'"{a}"{mark}{b}\n' for a, b in cells))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_records_are_read_by_field(name: str, tmp_path: Path) -> None:
    path = table(tmp_path / name)
    assert bytes(bytes_of(path, "text").tolist()).decode() == "\n\n".join(row["text"] for row in ROWS)
    for field, words in (
        (None, "must name the field .* `text`, `n`"),
        ("body", "has no `body`; it has `text`"),
    ):
        with pytest.raises(ValueError, match=f"`field` {words}" if field is None else words):
            TextFile(source="file", path=path, field=field).check("train", 8)


def test_field_is_for_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match="`field` must be left out unless"):
            TextFile(source="file", path=path, field="text").check("train", 8)


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line, words in (
        ("{", "is not valid JSON"),
        ("[1]", "must be an object"),
        ('{"text": 3}', "must be text"),
    ):
        path.write_text('{"text": "x"}\n' + line + "\n")
        with pytest.raises(ValueError, match=words):
            bytes_of(path, "text")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    source = TextFile(source="file", path=path)
    before = source.fingerprint()
    path.write_text(TEXT + "more")
    assert source.fingerprint() != before
    assert torch.equal(bytes_of(path), torch.tensor(list((TEXT + "more").encode()), dtype=torch.uint8))
