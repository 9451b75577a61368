"""Text in a field of records: all kinds of files give the same documents, and wrong records are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from flagformer.lab.data.catalogue import DataConfig

READER = TypeAdapter(DataConfig)
TEXTS = [f"document {number}, of {number % 7} \u20ac" for number in range(60)]
ROWS = [
    {"text": text, "lang": "en" if number % 3 else "de", "score": number / 10}
    for number, text in enumerate(TEXTS)
]


def write(path: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as one kind of file; return its path."""
    target = path / f"a.{kind}"
    if kind == "jsonl":
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        cells = [list(rows[0]), *([f'"{value}"' for value in row.values()] for row in rows)]
        target.write_text("".join(",".join(row) + "\n" for row in cells))
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), target, row_group_size=7)
    else:
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).save_to_disk(str(target))
    return target


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))


def records(path: Path, kind: str, **fields: Any) -> Any:
    return READER.validate_python({"source": kind, "path": path, "field": "text", "seq_len": 8, **fields})


def documents(source: Any) -> list[str]:
    found = source.open()
    pairs = zip(found.borders[:-1], found.borders[1:])
    return [bytes(found.ids.read(int(low), int(high - low)).tolist()).decode() for low, high in pairs]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "dataset"])
def test_every_kind_gives_the_same_documents(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, ROWS)
    assert documents(records(path, kind, separator="|")) == [f"{text}|" for text in TEXTS]
    conditions = {"lang": "en", "score": ">= 1.5"}
    kept = [row["text"] for row in ROWS if row["lang"] == "en" and row["score"] >= 1.5]
    assert documents(records(path, kind, separator="", filter=conditions)) == kept
    others = [row["text"] for row in ROWS if row["score"] in (0.5, 2.0)]
    assert documents(records(path, kind, separator="", filter={"score": [0.5, 2.0]})) == others
    source = records(path, kind)
    assert source.is_bytes
    assert source.bytes_per_token("train") == 1.0


def test_tokens_are_encoded_once_and_know_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=300, show_progress=False, special_tokens=["<end>"])
    made.save(str(tmp_path / "tokenizer.json"))
    path = write(tmp_path, "jsonl", ROWS)
    source = records(path, "jsonl", tokenizer=tmp_path / "tokenizer.json", separator="<end>")
    found = source.open()
    end = made.token_to_id("<end>")
    pairs = zip(TEXTS, found.borders[:-1], found.borders[1:])
    for text, low, high in pairs:
        ids = found.ids.read(int(low), int(high - low)).tolist()
        assert ids == [*made.encode(text).ids, end]
        assert found.sizes.read(int(low), int(high - low)).sum() == len(f"{text}<end>".encode())
    monkeypatch.setattr(type(source), "_kept", lambda self: pytest.fail("encoded twice"))
    assert source.open().ids.read(0, 9).tolist() == found.ids.read(0, 9).tolist()


def test_lists_of_ids_and_splits_of_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {
        name: datasets.Dataset.from_list([{"ids": [number, 5, 6, 7]} for number in range(start, start + 20)])
        for name, start in (("train", 0), ("test", 50))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    source = records(tmp_path / "set", "dataset", field="ids", vocabulary=70, packing="padded")
    assert not source.is_bytes
    firsts = {split: set() for split in ("train", "validation", "test")}
    for split, found in firsts.items():
        for step in range(20):
            found |= set(source.batch(split, step, 0, 1, 8)[0][:, 0].tolist())
    assert firsts["train"] == set(range(20))
    assert firsts["validation"] | firsts["test"] <= set(range(50, 70))
    assert not firsts["validation"] & firsts["test"]
    wrong = records(tmp_path / "set", "dataset", field="ids", vocabulary=60)
    with pytest.raises(ValueError, match=r"`vocabulary` must .* 60, and row 11 of .*test has 60"):
        wrong.open()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


# name: (kind, rows or content, damage, fields, message)
BAD: dict[str, tuple[str, Any, Any, dict[str, Any], str]] = {
    "missing field": ("jsonl", [*ROWS, {"body": "x"}], None, {}, "line 61 of .*jsonl has no `text`: `body`"),
    "null": ("jsonl", [ROWS[0], {"text": None}], None, {}, "line 2 of .* holds None; `filter: .text: not"),
    "a number": ("jsonl", [ROWS[0], {"text": 3}], None, {}, "`text` must be text .* line 2 of .* holds 3"),
    "no JSON": ("jsonl", [ROWS[0]], lambda p: p.write_text(p.read_text() + "{"), {}, "jsonl:2 is not valid"),
    "a list": ("jsonl", [{"text": [1, 2]}], None, {}, "set `vocabulary` if these are token ids"),
    "no list": ("jsonl", ROWS, None, {"vocabulary": 9}, "must be a list of token ids .* line 1 of"),
    "missing column": ("csv", ROWS, None, {"field": "body"}, "line 2 of .*a.csv has no `body`"),
    "missing in Parquet": ("parquet", ROWS, None, {"field": "body"}, "`body` must be a field of .*`text`"),
    "null in Parquet": ("parquet", [*ROWS, {"text": None}], None, {}, "row 61 of .*a.parquet holds None"),
    "cut Parquet": ("parquet", ROWS, damage, {}, "a.parquet cannot be read"),
    "text as Parquet": ("parquet", ROWS, lambda p: p.write_text("x" * 99), {}, "a.parquet cannot be read"),
    "no data set": ("jsonl", ROWS, None, {"source": "dataset"}, "`save_to_disk`"),
    "nothing left": ("jsonl", ROWS, None, {"filter": {"lang": "fr"}}, "some record that `filter` leaves"),
    "no such condition": ("jsonl", ROWS, None, {"filter": {"x": 1}}, "`filter` must name .* line 1 .*no `x`"),
    "no number": ("jsonl", ROWS, None, {"filter": {"lang": "> 3"}}, "`filter` compares numbers .* line 1 of"),
    "no files": ("jsonl", ROWS, None, {"source": "parquet"}, "files that end in .parquet, but is"),
    "two vocabularies": ("jsonl", ROWS, None, {"vocabulary": 3, "tokenizer": "t.json"}, "cannot be combined"),
    "no path": ("jsonl", ROWS, lambda p: p.unlink(), {}, "`path` must be a file or a folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_named(name: str, tmp_path: Path) -> None:
    kind, rows, change, given, words = BAD[name]
    fields = dict(given)
    path = write(tmp_path, kind, rows)
    if change:
        change(path)
    source = records(path, fields.pop("source", kind), **fields)
    with pytest.raises(ValueError, match=words):
        source.check("train", 8)


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_a_filter_of_a_text_file(name: str, tmp_path: Path) -> None:
    """`source: file` and `source: tokens` take the records that `source: jsonl` and `csv` take."""
    path, conditions = write(tmp_path, name, ROWS), {"lang": "de", "score": "> 2"}
    block = {"source": "file", "path": path, "field": "text", "seq_len": 8}
    kept = [row["text"] for row in ROWS if row["lang"] == "de" and row["score"] > 2]
    source, whole = (READER.validate_python({**block, **more}) for more in ({"filter": conditions}, {}))
    found = b"".join(bytes(source.content(split).tolist()) for split in ("train", "validation", "test"))
    assert found.decode() == "\n\n".join(kept)
    assert source.fingerprint() != whole.fingerprint()
    assert "filter" not in whole.model_dump()
    with pytest.raises(ValueError, match="`filter` must name fields of the records, but line "):
        READER.validate_python({**block, "filter": {"x": 1}}).check("train", 8)
    with pytest.raises(ValueError, match="`filter` needs the `field`"):
        READER.validate_python({**block, "field": None, "filter": {"x": 1}}).check("train", 8)
