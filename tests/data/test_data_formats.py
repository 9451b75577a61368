"""Files that are not plain text are refused by the name of their format, and records are read by field."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import re
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flagformer.lab.data.file import TextFile, bytes_of

TEXT = "of the people, by the people, for the people;\n" * 400
NOISE = random.Random(0).randbytes(20_000)


def numpy_file(save: Any, *arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


def packed(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, TEXT)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(TEXT)
        file.addfile(entry, io.BytesIO(TEXT.encode()))
    return buffer.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table texts (text)")
    connection.executemany("insert into texts values (?)", [(line,) for line in TEXT.splitlines()])
    connection.commit()
    return connection.serialize()


def tensors(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.randn(40, 40)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def ids(low: int, high: int, kind: str) -> bytes:
    return np.random.default_rng(0).integers(low, high, 20_000).astype(kind).tobytes()


def pdf() -> bytes:
    stream = zlib.compress(TEXT.encode())
    head = b"%PDF-1.4\n1 0 obj\n<< /Length " + str(len(stream)).encode() + b" >>\nstream\n"
    return head + stream + b"\nendstream\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
RUSSIAN = "\u0412\u043e\u0441\u0435\u043c\u044c \u0441\u0435\u043c\u044c \u043b\u0435\u0442.\n" * 200
CHINESE = "\u6211\u4eec\u4eca\u5929\u5728\u8fd9\u91cc\uff0c\u4e3a\u4e86\u81ea\u7531\u3002\n" * 200
# name: (content, text of the message)
BINARY: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(TEXT.encode()), "gzip file; decompress"),
    "bzip2": (bz2.compress(NOISE), "bzip2 file; decompress"),
    "bzip2, short": (bz2.compress(b"the people"), "bzip2 file; decompress"),
    "xz": (lzma.compress(TEXT.encode()), "xz file; decompress"),
    "lzma": (lzma.compress(TEXT.encode(), lzma.FORMAT_ALONE), "lzma file; decompress"),
    "zstd": (b"\x28\xb5\x2f\xfd" + NOISE, "Zstandard file; decompress"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7" + NOISE, "LZ4 file; decompress"),
    "zlib": (zlib.compress(NOISE), "is binary"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04" + NOISE, "7-Zip file"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + NOISE, "RAR file"),
    "tar": (archive(), "tar file; unpack"),
    "zip": (packed("a.txt"), "zip file; unpack"),
    "xlsx": (packed("[Content_Types].xml", "xl/workbook.xml"), "Excel file; save the sheet as .csv"),
    "docx": (packed("[Content_Types].xml", "word/document.xml"), "Office file; save it as plain text"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "Office file"),
    "pdf": (pdf(), "PDF file; extract its text"),
    "pdf, encrypted": (b"%PDF-1.7\n" + NOISE, "PDF file; extract its text"),
    "parquet": (b"PAR1" + NOISE + b"PAR1", "Parquet file; `source: parquet` reads"),
    "arrow": (b"ARROW1\x00\x00" + NOISE, "Arrow file; `source: dataset` reads"),
    "arrow stream": (b"\xff\xff\xff\xff\x78\x03\x00\x00\x10\x00\x00\x00" + NOISE, "Arrow file"),
    "feather": (b"FEA1" + NOISE + b"FEA1", "Feather file; write the column"),
    "orc": (b"ORC" + NOISE + b"ORC\x17", "ORC file; write the column"),
    "avro": (b"Obj\x01\x04\x16avro.schema" + TEXT.encode(), "Avro file; write the column"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(8) + NOISE, "HDF5 file; write the column"),
    "netcdf": (b"CDF\x01" + bytes(8) + TEXT.encode(), "NetCDF file"),
    "sqlite": (database(), "SQLite file; write the column"),
    "safetensors": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(4), "safetensors file"),
    "npy": (numpy_file(np.save, np.arange(3000, dtype=np.uint16)), "NumPy file"),
    "npz": (numpy_file(np.savez, np.arange(3000)), "NumPy (.npz) file"),
    "pickle": (pickle.dumps(TEXT), "pickle file; give a file of text"),
    "pickle, protocol 2": (pickle.dumps([TEXT], 2), "pickle file; give a file of text"),
    "pt": (tensors(True), "PyTorch file"),
    "pt, old": (tensors(False), "PyTorch file"),
    "gguf": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + NOISE, "GGUF file"),
    "sentencepiece": (
        b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02" + TEXT.encode(),
        "SentencePiece model file",
    ),
    "png": (b"\x89PNG\r\n\x1a\n" + NOISE, "image file"),
    "elf": (b"\x7fELF\x02\x01\x01" + bytes(9) + NOISE, "program file"),
    "UTF-16": (TEXT.encode("utf-16"), "UTF-16 file; convert it"),
    "UTF-32": (TEXT.encode("utf-32"), "UTF-32 file; convert it"),
    "UTF-16LE": (TEXT.encode("utf-16-le"), "UTF-16LE file; convert it (iconv -f UTF-16LE"),
    "UTF-16BE": (TEXT.encode("utf-16-be"), "UTF-16BE file; convert it"),
    "UTF-32LE": (TEXT.encode("utf-32-le"), "UTF-32LE file; convert it"),
    "UTF-32BE": (TEXT.encode("utf-32-be"), "UTF-32BE file; convert it"),
    "UTF-16LE, Russian": (RUSSIAN.encode("utf-16-le"), "UTF-16LE file; convert it"),
    "UTF-16BE, Chinese": (CHINESE.encode("utf-16-be"), "UTF-16BE file; convert it"),
    "uint16 ids": (ids(0, 50257, "<u2"), "is binary"),
    "uint16 ids, few zeros": (ids(1000, 50257, "<u2"), "is binary"),
    "uint16 ids, no zeros": (ids(300, 500, "<u2"), "is binary"),
    "uint16 ids, big end first": (ids(0, 50257, ">u2"), "is binary"),
    "uint32 ids": (ids(0, 128_000, "<u4"), "is binary"),
    "uint8 ids": (ids(0, 65, "u1"), "is binary"),
    "floats": (np.random.default_rng(0).normal(size=5000).astype("<f4").tobytes(), "is binary"),
    "halves": (np.random.default_rng(0).normal(size=5000).astype("<f2").tobytes(), "is binary"),
    "random": (NOISE, "is binary"),
    "zeros after a text": (TEXT.encode() + bytes(10_000), "is binary"),
    "tokenizer.json": (
        json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}}}).encode(),
        "tokenizer.json; name it in `tokenizer`",
    ),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_formats_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, words = BINARY[name]
    path = tmp_path / "data"
    path.write_bytes(content)
    for where in (path, tmp_path):  # as a file, and in a folder
        with pytest.raises(
            ValueError, match=f"`path` must be a file of text, but .*data .*{re.escape(words)}"
        ):
            TextFile(source="file", path=where).check("train", 32)


ENGLISH = TEXT.encode()
COLOURS = b"\x1b[31mthe people\x1b[0m\r\n" * 200
READ: dict[str, bytes] = {
    "latin-1": TEXT.encode().replace(b"e", b"\xe9"),
    "latin-1 and a zero": b"\x00" + TEXT.encode().replace(b"e", b"\xe9"),
    "short latin-1 and a zero": b"na\xefve\x00caf\xe9",
    "cp1252": "\u201cof the people\u201d \u2013 caf\u00e9\n".encode("cp1252") * 99,
    "cp1251": RUSSIAN.encode("cp1251"),
    "koi8-r": RUSSIAN.encode("koi8-r"),
    "gb18030": CHINESE.encode("gb18030"),
    "big5": "\u6211\u5011\u4eca\u5929\u5728\u9019\u88e1\u3002\n".encode("big5") * 99,
    "shift-jis": "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002\n".encode("shift-jis") * 99,
    "iso-2022-jp": "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002\n".encode("iso-2022-jp") * 99,
    "euc-kr": "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\n".encode("euc-kr") * 99,
    "a mark of UTF-8": b"\xef\xbb\xbf" + ENGLISH,
    "a zero": b"a\x00" + ENGLISH,
    "a zero in a few bytes": b"of the\x00people",
    "zeros between records": b"of the people, by the people\x00" * 400,
    "zeros between words": ENGLISH.replace(b" ", b"\x00"),
    "control characters": bytes(range(32)) + ENGLISH,
    "end of file of DOS": ENGLISH + b"\x1a",
    "fields by control characters": b"people\x01nation\x02\n" * 400,
    "records by separators": b"people\x1fnation\x1e" * 400,
    "colours": COLOURS,
    "typed twice": b"n\x08na\x08a" * 400,
    "form feeds": b"page\x0c" * 400,
    "cut characters": CHINESE.encode()[1:-2],
    "invalid here and there": ENGLISH.replace(b"by the people", b"by the \xff people", 1) * 9,
    "bytes but zero": bytes(random.Random(0).choices(range(1, 256), k=20_000)),
    "PAR1": b"PAR1 of " + ENGLISH,
    "BZh": b"BZh" + ENGLISH,
    "ORC": b"ORC\xc9E " + ENGLISH,
    "GGUF": b"GGUF is a format; " + ENGLISH,
    "%PDF": b"%PDF-1.4 begins each file; " + ENGLISH,
    "PK": b"PK and MZ are the initials of " + ENGLISH,
    "MZ": b"MZ, OggS, ID3, RIFF, Rar! and II* begin files; " + ENGLISH,
    "P*M": b"P*M " + ENGLISH,
    "Obj": b"Obj 1; " + ENGLISH,
    "SQLite": b"SQLite format 3 is " + ENGLISH,
    "MATLAB": b"MATLAB 5.0 MAT-file is " + ENGLISH,
    "base64": base64.b64encode(NOISE),
    "one character": b"a",
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_text_in_other_encodings_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(READ[name])
    assert bytes(bytes_of(tmp_path / "text").tolist()) == READ[name]
    assert bytes(bytes_of(tmp_path).tolist()) == READ[name]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_records_are_utf8(suffix: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    lines = 'text\n"caf\xe9"\n' if suffix == ".csv" else '{"text": "caf\xe9"}\n'
    path.write_bytes(lines.encode(codec))
    if codec.startswith("utf-8"):
        assert bytes(bytes_of(path, "text").tolist()).decode() == "caf\xe9"
        return
    number = {".csv": 2, ".jsonl": 1}[suffix]
    words = (
        f"a{suffix}:{number} is not UTF-8.*iconv -f ISO-8859-1"
        if codec == "latin-1"
        else "UTF-16.*file; convert"
    )
    with pytest.raises(ValueError, match=words):
        bytes_of(path, "text")


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


def test_field_is_for_tables_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match="`field` must be left out unless"):
            TextFile(source="file", path=path, field="text").check("train", 8)


def test_a_line_that_is_not_a_record_is_named(tmp_path: Path) -> None:
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
