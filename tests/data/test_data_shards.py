"""Token ids that other programs wrote: every format gives the same ids, and damaged files are named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flagformer.lab.data import IGNORE
from flagformer.lab.data.shards import Shards

VOCABULARY = 60_000
EOS = 7
RNG = np.random.default_rng(0)
DOCUMENTS = [np.append(RNG.integers(8, VOCABULARY, size), EOS) for size in RNG.integers(1, 60, 40)]
IDS = np.concatenate(DOCUMENTS)


def raw(path: Path, kind: str = "<u2") -> None:
    path.with_suffix(".bin").write_bytes(IDS.astype(kind).tobytes())


def headed(path: Path, magic: int, version: int, kind: str) -> None:
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, version, len(IDS)
    path.with_suffix(".bin").write_bytes(head.tobytes() + IDS.astype(kind).tobytes())


def megatron(path: Path, code: int = 8, kind: str = "<u2") -> None:
    raw(path, kind)
    sizes = np.array([len(one) for one in DOCUMENTS])
    width = np.dtype(kind).itemsize
    parts = (
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(sizes) + 1),
        sizes.astype("<i4").tobytes(),
        ((np.cumsum(sizes) - sizes) * width).astype("<i8").tobytes(),
        np.arange(len(sizes) + 1, dtype="<i8").tobytes(),
    )
    path.with_suffix(".idx").write_bytes(b"".join(parts))


def safetensors(path: Path, kind: str = "U32", dtype: str = "<u4") -> None:
    content = IDS.astype(dtype).tobytes()
    entry = {"dtype": kind, "shape": [len(IDS)], "data_offsets": [0, len(content)]}
    header = json.dumps({"__metadata__": {}, "ids": entry}).encode()
    path.with_suffix(".safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content)


# name: (write, fields of the source)
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "nanoGPT": (raw, {}),
    "uint32": (lambda path: raw(path, "<u4"), {"dtype": "uint32"}),
    "int32": (lambda path: raw(path, "<i4"), {"dtype": "int32"}),
    "llm.c, GPT-2": (lambda path: headed(path, 20240520, 1, "<u2"), {}),
    "llm.c, Llama 3": (lambda path: headed(path, 20240801, 7, "<u4"), {}),
    "Megatron, uint16": (megatron, {}),
    "Megatron, int32": (lambda path: megatron(path, 4, "<i4"), {}),
    "npy": (lambda path: np.save(path.with_suffix(".npy"), IDS.astype(np.uint16)), {}),
    "npy, big end first": (lambda path: np.save(path.with_suffix(".npy"), IDS.astype(">u4")), {}),
    "safetensors": (safetensors, {}),
}


def shards(path: Path, **fields: Any) -> Shards:
    return Shards(**{"source": "shards", "path": path, "vocabulary": VOCABULARY, "seq_len": 16, **fields})


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    write, fields = FORMS[name]
    write(tmp_path / "a")
    source = shards(tmp_path, split_by="position", **fields)
    found = source.open()
    assert found.ids.read(0, len(found.ids)).tolist() == IDS.tolist()
    inputs, targets = source.batch("train", 3, 0, 4, 16)
    rows = torch.cat([inputs, targets[:, -1:]], dim=1)
    where = {tuple(IDS[i : i + 17]) for i in range(len(IDS) - 16)}
    assert all(tuple(row) in where for row in rows.tolist())
    assert (found.borders is not None) == name.startswith("Megatron")


@pytest.mark.parametrize("form", ["Megatron, uint16", "nanoGPT"])
def test_documents_are_those_of_the_index_or_of_an_id(form: str, tmp_path: Path) -> None:
    FORMS[form][0](tmp_path / "a")
    source = shards(tmp_path, packing="padded", **({} if form != "nanoGPT" else {"eos": EOS}))
    borders = source.open().borders
    assert np.diff(borders).tolist() == [len(one) for one in DOCUMENTS]
    begun = shards(tmp_path, bos=int(DOCUMENTS[3][0]))
    if form == "nanoGPT":
        assert sum(map(len, DOCUMENTS[:3])) in begun.open().borders.tolist()


def test_a_folder_is_one_row_of_files_with_splits_by_their_names(tmp_path: Path) -> None:
    """A row continues in the next file; nanoGPT has train.bin and val.bin."""
    for name, part in (("train_000", IDS[:300]), ("train_001", IDS[300:600]), ("val", IDS[600:])):
        (tmp_path / f"{name}.bin").write_bytes(part.astype("<u2").tobytes())
    (tmp_path / "train.json").write_text("{}")
    source = shards(tmp_path)
    assert [int(x) for x in (source._spans("train").total, source._spans("validation").total)] == [
        600,
        (len(IDS) - 600) // 2,
    ]
    rows = {tuple(row) for step in range(12) for row in source.batch("train", step, 0, 3, 16)[0].tolist()}
    assert rows <= {tuple(IDS[i : i + 16]) for i in range(0, 584, 16)}
    assert len(rows) == 36
    assert tuple(IDS[288:304]) in {
        tuple(r) for s in range(13) for r in source.batch("train", s, 0, 3, 16)[0].tolist()
    }
    by_position = shards(tmp_path, split_by="position")
    assert by_position._spans("train").total == int(0.9 * len(IDS))


def test_splits_by_hash_keep_equal_documents_together(tmp_path: Path) -> None:
    many = [np.append(np.full(3, 10 + number % 97), EOS) for number in range(970)]
    (tmp_path / "a.bin").write_bytes(np.concatenate(many).astype("<u2").tobytes())
    source = shards(tmp_path, split_by="hash", packing="padded", eos=EOS, seq_len=4)
    found = source.open()
    parts = [
        {int(found.ids.read(int(start), 1)[0]) for start in source._spans(split).starts}
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, parts)) == 97, "no document is in two splits"
    assert [source._spans(split).total > 0 for split in ("train", "validation", "test")] == [True] * 3


def test_ids_outside_of_the_vocabulary_are_named(tmp_path: Path) -> None:
    for kind, wrong in (("uint16", VOCABULARY), ("int32", -1)):
        changed = IDS.copy()
        changed[100] = wrong
        path = tmp_path / f"{kind}.bin"
        path.write_bytes(changed.astype(f"<{kind[0]}{int(kind[-2:]) // 8}").tobytes())
        source = shards(path, dtype=kind, split_by="position")
        with pytest.raises(ValueError, match=rf"`vocabulary` must .* token 100 of .*{kind}.bin is {wrong:,}"):
            source.batch("train", 0, 0, len(IDS) // 16, 16)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-101])


# name: (write, damage, fields, message)
BAD: dict[str, tuple[Any, str, Any, dict[str, Any], str]] = {
    "odd size": (raw, "a.bin", cut, {}, r"whole uint16 ids, but .*a.bin has .* cut off"),
    "cut, with a header": (FORMS["llm.c, GPT-2"][0], "a.bin", cut, {}, r"a.bin is cut off: its header"),
    "another dtype": (FORMS["llm.c, GPT-2"][0], "a.bin", None, {"dtype": "int32"}, "`dtype` must be uint16"),
    "cut, Megatron": (megatron, "a.bin", cut, {}, r"a.bin is cut off: its index a.idx says"),
    "cut index": (megatron, "a.idx", cut, {}, r"a.idx is cut off"),
    "no index": (megatron, "a.idx", lambda p: p.write_bytes(b"x" * 99), {}, "a.idx must be an index"),
    "floats": (lambda p: np.save(p.with_suffix(".npy"), np.ones(9)), "a.npy", None, {}, "must hold integers"),
    "no array": (lambda p: p.with_suffix(".npy").write_bytes(b"x" * 99), "a.npy", None, {}, "a.npy cannot"),
    "cut array": (FORMS["npy"][0], "a.npy", cut, {}, "a.npy cannot be read"),
    "cut tensor": (safetensors, "a.safetensors", cut, {}, "a.safetensors is cut off"),
    "another tensor": (safetensors, "a.safetensors", None, {"tensor": "x"}, "`tensor` must name .* `ids`"),
    "no header": (safetensors, "a.safetensors", lambda p: p.write_bytes(b"x" * 99), {}, "header is damaged"),
    "empty": (lambda p: p.with_suffix(".bin").write_bytes(b""), "a.bin", None, {}, "files of .* are empty"),
    "text": (lambda p: p.with_suffix(".txt").write_text("a"), "a.txt", None, {}, "must hold files of"),
    "no documents": (raw, "a.bin", None, {"packing": "documents"}, "needs .*`eos` or `bos`"),
    "no names": (raw, "a.bin", None, {"split_by": "files"}, "`split_by: files` needs names"),
    "two borders": (raw, "a.bin", None, {"eos": 1, "bos": 2}, "`eos` and `bos` cannot be combined"),
    "short": (raw, "a.bin", None, {"seq_len": 4000}, "the train part of .* has no row of 4000 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(name: str, tmp_path: Path) -> None:
    write, file, damage, fields, words = BAD[name]
    write(tmp_path / "a")
    if damage:
        damage(tmp_path / file)
    source = shards(tmp_path, **fields)
    with pytest.raises(ValueError, match=words):
        source.check("train", source.seq_len)


def test_a_batch_of_a_sparse_file_of_10_gb_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)
    source = shards(path, seq_len=1024)
    source.check("train", 1024)
    source.fingerprint()
    assert source.batch("train", 10**5, 3, 8, 1024)[0].shape == (8, 1024)


def test_padding_is_no_target(tmp_path: Path) -> None:
    megatron(tmp_path / "a")
    source = shards(tmp_path, packing="padded", seq_len=16)
    inputs, targets = source.batch("train", 0, 0, 6, 16)
    lengths = source.sequence_lengths("train", 0, 0, 6, 16)
    assert ((targets != IGNORE).sum(1) == lengths[:, 0]).all()
    for row, wanted, length in zip(inputs, targets, lengths[:, 0].tolist()):
        assert torch.equal(row[1:length], wanted[: length - 1])
        assert not row[length:].any()
