"""Damaged and wrong files of every form: each gives one error of one line, with the file and the row."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from flagformer.lab.data.catalogue import DataConfig

READER = TypeAdapter(DataConfig)
ROWS = 40
PLACES = (1, 17, ROWS)  # rows that are damaged
CUTS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)  # parts of a file that are left
IDS = (np.arange(2000) * 7) % 90
VOCABULARY = 100
# name: (writes files, returns the block), and the words of the message
Case = tuple[str, Callable[[Path], dict[str, Any]], str]


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def records() -> list[dict[str, Any]]:
    return [{"text": f"text number {n} " * 3, "other": f"other {n}", "kind": n % 3} for n in range(ROWS)]


def lines(changed: dict[int, bytes]) -> bytes:
    """JSON lines of which some, by number from 1, are replaced."""
    found = [json.dumps(record).encode() for record in records()]
    return b"\n".join(changed.get(number, line) for number, line in enumerate(found, 1)) + b"\n"


def of_jsonl() -> Iterator[Case]:
    values = {"null": None, "number": 3, "list": ["a"], "object": {"a": 1}, "true": True, "missing": ...}
    labels = {"null": None, "float": 0.5, "list": [1], "object": {}, "empty": "", "missing": ...}
    broken = {
        "cut": b'{"text": "a', "array": b"[1, 2]", "word": b"word", "number": b"3",
        "bytes": b'{"text": "\xff"}',
        "two": b'{"text": "a"} {"text": "b"}', "comma": b'{"text": "a",}', "nothing": b'"text": "a"',
    }  # fmt: skip
    plain = {"source": "jsonl", "field": "text"}
    pairs = {"source": "parallel", "field": "text", "target_field": "other"}
    for place in PLACES:
        for name, line in broken.items():
            for form, block in (("jsonl", plain), ("parallel", pairs)):
                yield jsonl(f"{form} {name} {place}", block, place, line)
        for name, value in values.items():
            yield jsonl(f"field {name} {place}", plain, place, changed("text", value, place))
            for field in ("text", "other"):
                yield jsonl(f"{field} {name} {place}", pairs, place, changed(field, value, place))
        for field in ("text", "other"):
            yield jsonl(f"{field} empty {place}", pairs, place, changed(field, "", place))
        for name, value in labels.items():
            block = {**plain, "label": "kind"}
            yield jsonl(f"label {name} {place}", block, place, changed("kind", value, place))
        block = {**plain, "filter": {"kind": "> 1"}}
        yield jsonl(f"filter {place}", block, place, changed("kind", "x", place))
        block = {**plain, "vocabulary": 9}
        yield jsonl(f"ids {place}", block, place, changed("text", [3, 9], place), ids=True)


def changed(field: str, value: Any, place: int) -> bytes:
    record = records()[place - 1]
    if value is ...:
        del record[field]
    else:
        record[field] = value
    return json.dumps(record).encode()


def jsonl(name: str, block: dict[str, Any], place: int, line: bytes, ids: bool = False) -> Case:
    def write(path: Path) -> dict[str, Any]:
        content = lines({place: line})
        if ids:
            content = b'{"text": [1, 2]}\n' * (place - 1) + line
        return {**block, "path": put(path / "a.jsonl", content)}

    return name, write, rf"a\.jsonl:{place}\b|line {place} of .*a\.jsonl"


def of_tables() -> Iterator[Case]:
    good = [f'"text {number}, and more",b,{number % 3}' for number in range(ROWS)]
    broken = {"short": "", "long": '"a",b,1,2', "bytes": '"a\udcff",b,1'}
    for place in PLACES:
        for name, row in broken.items():
            for block in ({"source": "csv", "field": "other"}, PAIR):
                rows = [*good[: place - 1], row or "a", *good[place:]]
                yield table(f"csv {name} {place} {block['source']}", rows, block, place + 1)
    yield table("csv column", good, {"source": "csv", "field": "x"}, None)
    yield table("csv without rows", [], {"source": "csv", "field": "text"}, None)
    yield table("pairs without rows", [], PAIR, None)
    yield table("one class", good[::3], {"source": "csv", "field": "text", "label": "kind"}, None)


PAIR = {"source": "parallel", "field": "text", "target_field": "other"}


def table(name: str, rows: list[str], block: dict[str, Any], line: int | None) -> Case:
    content = "\n".join(["text,other,kind", *rows]).encode("utf-8", errors="surrogateescape")
    words = r"a\.csv|no token|label" if line is None else rf"a\.csv:{line}\b|line {line} of .*a\.csv"
    return name, lambda path: {**block, "path": put(path / "a.csv", content)}, words


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    return target.getvalue()


def of_parquet() -> Iterator[Case]:
    texts = [record["text"] for record in records()]
    whole = parquet_bytes({"text": texts, "other": texts})
    block = {"source": "parquet", "field": "text"}
    contents = {f"cut {part}": whole[: int(part * len(whole))] for part in CUTS}
    contents |= {"empty": b"", "text": b"x" * 99, "begin": b"PAR1", "end": whole[:-1] + b"2"}
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    contents["footer"] = whole[:footer] + b"\xff" * 40 + whole[footer + 40 :]
    contents["numbers"] = parquet_bytes({"text": list(range(ROWS))})
    contents["missing"] = parquet_bytes({"body": texts})
    for name, content in contents.items():
        for one in (block, PAIR):
            yield parquet(f"parquet {name} {one['source']}", content, one, r"a\.parquet")
    for place in PLACES:
        column = [None if number == place else text for number, text in enumerate(texts, 1)]
        content = parquet_bytes({"text": column, "other": texts})
        for one in (block, PAIR):
            yield parquet(
                f"parquet null {place} {one['source']}", content, one, rf"row {place} of .*a\.parquet"
            )


def parquet(name: str, content: bytes, block: dict[str, Any], words: str) -> Case:
    return name, lambda path: {**block, "path": put(path / "a.parquet", content)}, words


def npy(array: Any) -> bytes:
    target = io.BytesIO()
    np.save(target, array, allow_pickle=True)
    return target.getvalue()


def safetensors(entry: dict[str, Any] | None = None, content: bytes | None = None) -> bytes:
    content = IDS.astype("<u4").tobytes() if content is None else content
    entry = {"dtype": "U32", "shape": [len(IDS)], "data_offsets": [0, len(IDS) * 4], **(entry or {})}
    header = json.dumps({"ids": entry}).encode()
    return struct.pack("<Q", len(header)) + header + content


def headed(magic: int = 20240520, count: int = len(IDS)) -> bytes:
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, 1, count
    return head.tobytes() + IDS.astype("<u2").tobytes()


def megatron(**changes: Any) -> bytes:
    sizes = np.full(20, 100)
    given = {"version": 1, "code": 8, "count": 20, "documents": 21, "sizes": sizes,
             "pointers": (np.cumsum(sizes) - sizes) * 2, "borders": np.arange(21), **changes}  # fmt: skip
    head = struct.pack("<QBQQ", *(given[key] for key in ("version", "code", "count", "documents")))
    arrays = (given["sizes"].astype("<i4"), given["pointers"].astype("<i8"), given["borders"].astype("<i8"))
    return b"MMIDIDX\x00\x00" + head + b"".join(array.tobytes() for array in arrays)


def of_shards() -> Iterator[Case]:
    whole = {"npy": npy(IDS.astype("<u2")), "safetensors": safetensors(), "bin": headed()}
    for suffix, content in whole.items():
        for part in CUTS:
            cut = content[: 1 + 2 * int(part * len(content) / 2)]
            if suffix != "bin" or len(cut) > 1024:
                yield shard(f"{suffix} cut {part}", {f"a.{suffix}": cut}, rf"a\.{suffix}")
    for kind in ("<u2", "<u4", "<i4", "<i8"):
        raw, name = IDS.astype(kind), np.dtype(kind).name
        for more in range(1, np.dtype(kind).itemsize):
            content = raw.tobytes() + b"\0" * more
            yield shard(
                f"{name} and {more} bytes", {"a.bin": content}, f"whole {name} ids, but .*a.bin", dtype=name
            )
        for place in (0, 700, 1900):
            for wrong in (VOCABULARY, -1) if kind[1] == "i" else (VOCABULARY, 9999):
                ids = raw.copy()
                ids[place] = wrong
                words = rf"token {place:,} of .*a\.bin is {wrong:,}"
                yield shard(f"{name} {wrong} at {place}", {"a.bin": ids.tobytes()}, words, dtype=name)
    yield shard(
        "uint16 as uint32", {"a.bin": IDS.astype("<u2").tobytes()}, r"token \d+ of .*a\.bin", dtype="uint32"
    )
    yield shard("dtype of a header", {"a.bin": headed()}, r"`dtype` must be uint16", dtype="int32")
    yield shard("header beyond", {"a.bin": headed(count=len(IDS) + 1)}, r"a\.bin is cut off")
    for kind in ("f2", "f4", "f8", "c8", "?", "O", "U3", "M8[s]", "V4"):
        array = np.zeros(50, dtype=kind) if kind != "O" else np.array([{}] * 3, dtype=object)
        yield shard(f"npy of {kind}", {"a.npy": npy(array)}, r"a\.npy")
    for shape in ((), (2, 2, 2), (0,), (3, 0)):
        yield shard(f"npy {shape}", {"a.npy": npy(np.zeros(shape, dtype="u2"))}, r"a\.npy|are empty")
    for name, content in {"text": b"x" * 99, "none": b"", "pickle": b"\x80\x04]."}.items():
        yield shard(f"{name} as npy", {"a.npy": content}, r"a\.npy")
        yield shard(f"{name} as safetensors", {"a.safetensors": content}, r"a\.safetensors")
    bad: dict[str, dict[str, Any]] = {
        "dtype": {"dtype": "F32"}, "kind": {"dtype": "X"}, "shape": {"shape": [9999999]},
        "form": {"shape": "x"},
        "deep": {"shape": [2, 2, 500]}, "offsets": {"data_offsets": [10**9, 10**9]}, "no offsets":
        {"data_offsets": []}, "words": {"data_offsets": "x"}, "negative": {"shape": [-5]},
    }  # fmt: skip
    for name, entry in bad.items():
        yield shard(f"safetensors {name}", {"a.safetensors": safetensors(entry)}, r"a\.safetensors")
    indices = {
        "version": {"version": 2}, "code": {"code": 6}, "unknown code": {"code": 99},
        "count": {"count": 10**6},
        "documents": {"documents": 10**6}, "sizes": {"sizes": np.full(20, -1)}, "pointers":
        {"pointers": np.zeros(20)}, "borders": {"borders": np.arange(21)[::-1]}, "beyond": {"sizes":
        np.full(20, 101), "pointers": np.arange(20) * 202},
    }  # fmt: skip
    content = IDS.astype("<u2").tobytes()
    for name, changes in indices.items():
        yield shard(f"index {name}", {"a.bin": content, "a.idx": megatron(**changes)}, r"a\.(idx|bin)")
    for part in CUTS:
        index = megatron()
        cut = index[: int(part * len(index))]
        yield shard(f"index cut {part}", {"a.bin": content, "a.idx": cut}, r"a\.idx")
        cut = content[: int(part * len(content))]
        yield shard(f"ids of an index cut {part}", {"a.bin": cut, "a.idx": megatron()}, r"a\.bin is cut off")
    yield shard("empty", {"a.bin": b""}, "are empty")
    yield shard("short", {"a.bin": IDS[:9].astype("<u2").tobytes()}, "has no row of 8 tokens: it holds")
    yield shard("documents", {"a.bin": content}, "needs documents", packing="padded")


def shard(name: str, files: dict[str, bytes], words: str, **fields: Any) -> Case:
    def write(path: Path) -> dict[str, Any]:
        for file, content in files.items():
            put(path / file, content)
        return {"source": "shards", "path": path, "vocabulary": VOCABULARY, **fields}

    return f"shards {name}", write, words


def of_texts() -> Iterator[Case]:
    text = "words and words " * 200
    binary = {
        "gzip": gzip.compress(text.encode()), "UTF-16": text.encode("utf-16"), "NumPy": npy(IDS),
        "Parquet": b"PAR1" + bytes(90) + b"PAR1", "zip": b"PK\x05\x06" + bytes(90),
        "pickle": b"\x80\x04\x95" + bytes(200), "SQLite": b"SQLite format 3\x00" + bytes(99),
        "image": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "safetensors": safetensors(), "PDF": b"%PDF-1.4" + bytes(99) + b"%%EOF",
        "binary": bytes(range(256)) * 9,
    }  # fmt: skip
    for name, content in binary.items():
        yield texts(f"{name} as file", {"a": content}, {"source": "file", "path": "a"}, r"\ba\b")
        yield texts(f"{name} as lines", {"a": content, "b": b"x\n"}, LINES, r"\ba\b")
        yield texts(f"{name} as targets", {"a": b"x\n", "b": content}, LINES, r"\bb\b")
    good = [f"line {number}".encode() for number in range(ROWS)]
    for place in PLACES:
        for file in ("a", "b"):
            files = {"a": b"\n".join(good), "b": b"\n".join(good)}
            for name, row in {"empty": b"", "blank": b" \t", "bytes": b"a \xff z"}.items():
                changes = [*good[: place - 1], row, *good[place:], b"x"]
                both = {**files, file: b"\n".join(changes)}
                yield texts(f"{name} line {place} of {file}", both, LINES, rf"{file}:{place}\b|as many lines")
            both = {**files, file: b"\n".join(good[: place - 1] or [b""])}
            yield texts(
                f"{file} ends before {place}", both, LINES, rf"\b{file}(:1\b| ends before line| is empty)"
            )
    yield texts("no text", {"a": b""}, {"source": "file", "path": "a"}, "a is empty")
    yield texts("short text", {"a": b"abc"}, {"source": "file", "path": "a"}, "part of .*a holds")
    yield texts("no targets", {"a": b"x\n"}, {"source": "parallel", "path": "a"}, "`target_path` must name")
    yield texts("no file", {}, {"source": "file", "path": "a"}, "a is not there")
    yield texts("no lines", {}, LINES, r"\ba\b")
    yield texts("one pair", {"a": b"x\n", "b": b"y\n"}, LINES, "has no pair .*: it has no pair")


LINES = {"source": "parallel", "path": "a", "target_path": "b"}


def texts(name: str, files: dict[str, bytes], block: dict[str, Any], words: str) -> Case:
    def write(path: Path) -> dict[str, Any]:
        for file, content in files.items():
            put(path / file, content)
        return {key: path / value if key.endswith("path") else value for key, value in block.items()}

    return name, write, words


def of_series() -> Iterator[Case]:
    good = [f"{number},{number % 7}" for number in range(ROWS)]
    for place in PLACES:
        for name, cell in {"nan": "nan", "inf": "-inf", "word": "x", "empty": "", "comma": '"1,5"'}.items():
            rows = [*good[: place - 1], f"1,{cell}", *good[place:]]
            yield numbers(
                f"csv {name} {place}",
                "a.csv",
                "\n".join(["a,b", *rows]).encode(),
                rf"line {place + 1} of .*a\.csv",
            )
        for name, row in {"short": "1", "long": "1,2,3"}.items():
            rows = [*good[: place - 1], row, *good[place:]]
            words = rf"line {place + 1} of .*a\.csv|a\.csv:{place + 1}\b"
            yield numbers(f"csv {name} {place}", "a.csv", "\n".join(["a,b", *rows]).encode(), words)
        for value in (np.nan, np.inf):
            for shape in ((ROWS,), (ROWS, 3), (4, ROWS, 2)):
                array = np.zeros(shape)
                array[
                    (2, place - 1, 1)[3 - len(shape) :] if len(shape) == 3 else (place - 1, 0)[: len(shape)]
                ] = value
                yield numbers(
                    f"npy {value} {place} {shape}",
                    "a.npy",
                    npy(array),
                    rf"a\.npy .*row {place - 1}, column \d",
                )
    for part in CUTS:
        whole = npy(np.zeros((ROWS, 3)))
        yield numbers(f"npy cut {part}", "a.npy", whole[: int(part * len(whole))], r"a\.npy")
    for kind in ("c8", "?", "O", "U3", "M8[s]"):
        array = np.zeros(50, dtype=kind) if kind != "O" else np.array([{}] * 3, dtype=object)
        yield numbers(f"npy of {kind}", "a.npy", npy(array), r"a\.npy")
    for shape in ((), (2, 2, 2, 2), (0,), (9, 0)):
        yield numbers(f"npy {shape}", "a.npy", npy(np.zeros(shape)), r"a\.npy|has no window")
    yield numbers("no column", "a.csv", b"a,b\n1,2\n", "`c` must be a field of .*a.csv", columns=["c"])
    yield numbers("columns of an array", "a.npy", npy(IDS), "`columns` must be left out", columns=["c"])
    yield numbers("short", "a.csv", b"a\n1\n2\n3\n", "has no window of 8 rows")
    yield numbers("only a header", "a.csv", b"a,b\n", r"a\.csv has no row")
    yield numbers("no series", "a.txt", b"1\n", "`path` must hold series")


def numbers(name: str, file: str, content: bytes, words: str, **fields: Any) -> Case:
    def write(path: Path) -> dict[str, Any]:
        put(path / file, content)
        return {"source": "series", "path": path, **fields}

    return f"series {name}", write, words


def of_images() -> Iterator[Case]:
    from PIL import Image

    image = Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))
    for kind in ("png", "jpeg", "bmp", "tiff"):
        target = io.BytesIO()
        image.save(target, kind)
        for part in (0.02, 0.1, 0.3, 0.5):
            content = target.getvalue()[: int(part * len(target.getvalue()))]
            yield pictures(f"{kind} cut {part}", {f"a/x.{kind}": content}, rf"x\.{kind} cannot be read")
    for name, content in {"text": b"words", "none": b"", "array": npy(IDS), "svg": b"<svg/>"}.items():
        yield pictures(f"{name} as png", {"a/x.png": content}, r"x\.png cannot be read")
    target = io.BytesIO()
    image.save(target, "png")
    yield pictures("no class", {"x.png": target.getvalue()}, r"x\.png is in none")
    yield pictures("no images", {"a/x.txt": b"x"}, "has no file that ends in")
    yield pictures("one image", {"a/x.png": target.getvalue()}, "part of .* has no image")


def pictures(name: str, files: dict[str, bytes], words: str) -> Case:
    def write(path: Path) -> dict[str, Any]:
        for file, content in files.items():
            put(path / file, content)
        return {"source": "image_folder", "path": path, "size": 4}

    return f"images {name}", write, words


def used(block: dict[str, Any]) -> None:
    """Check the source, and read every row of every split."""
    source: Any = READER.validate_python({"seq_len": 16 if block["source"] == "image_folder" else 8, **block})
    length = source.seq_len
    for split in ("train", "validation", "test"):
        source.check(split, length)
        if source.num_classes is not None and block["source"] != "image_folder":
            source.classified(split, 0, 0, 64, length)
        source.batch(split, 0, 0, 256, length)


def test_each_gives_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))
    forms = (of_jsonl, of_tables, of_parquet, of_shards, of_texts, of_series, of_images)
    cases = [case for form in forms for case in form()]
    assert len(cases) >= 300
    faults = []
    for number, (name, write, words) in enumerate(cases):
        block = write(tmp_path / str(number))
        try:
            used(block)
            faults.append(f"{name}: read without an error")
        except ValueError as error:
            text = str(error)
            if not re.search(words, text) or "\n" in text or len(text) > 500:
                faults.append(f"{name}: {text!r} instead of {words!r}")
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
    assert not faults, f"{len(faults)} of {len(cases)}:\n" + "\n".join(faults)
