"""Text: next bytes, disjoint splits, errors that name the file."""

import os
import random
from pathlib import Path

import pytest
import torch

from flagformer.lab.data import SPLITS
from flagformer.lab.data.file import TextFile
from flagformer.lab.data.stdlib import HELD_OUT_EVERY, StandardLibrary, sources


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(random.Random(0).choices(range(1, 256), k=20_000)))  # zeros are not text
    return path


def rows_of(source, split, batch):
    content = bytes(source.content(split).tolist())
    inputs, targets = batch
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        yield content, bytes([*row, wanted[-1]])


@pytest.mark.parametrize("split", SPLITS)
def test_targets_are_the_next_bytes_of_the_split(text, split):
    source = TextFile(source="file", path=text)
    inputs, targets = batch = source.batch(split, 1, 2, 5, 33)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    for content, row in rows_of(source, split, batch):
        assert row in content


def test_a_file_is_split_into_three_disjoint_spans(text):
    source = TextFile(source="file", path=text)
    parts = [bytes(source.content(split).tolist()) for split in SPLITS]
    assert b"".join(parts) == text.read_bytes()
    assert [len(part) for part in parts] == [18_000, 1_000, 1_000]


def test_the_library_is_split_by_file():
    source = StandardLibrary(mib=1.0)
    root = os.path.dirname(os.__file__)
    files, left = [], 2**20
    for path in sources(Path(root)):
        left -= path.stat().st_size
        if left < 0:
            break
        files.append(path.read_bytes())
    places = {
        "validation": [9],
        "test": [19],
        "train": [n for n in range(HELD_OUT_EVERY) if n not in (9, 19)],
    }
    for split, wanted in places.items():
        expected = b"".join(file for number, file in enumerate(files) if number % HELD_OUT_EVERY in wanted)
        assert bytes(source.content(split).tolist()) == expected


def test_the_library_excludes_site_packages():
    files = sources(Path(os.path.dirname(os.__file__)))
    parts = {part for path in files for part in path.parts}
    assert files == sorted(files, key=lambda path: path.as_posix())
    assert len(files) > 200
    assert not parts & {"site-packages", "test", "tests", "__pycache__"}


def test_every_length_is_scored_on_the_same_held_out_bytes(text):
    source = TextFile(source="file", path=text)
    short = source.batch("test", 3, 0, 16, 8)[1].flatten()
    for batch_size, seq_len in ((8, 16), (2, 64), (1, 128)):
        assert torch.equal(source.batch("test", 3, 0, batch_size, seq_len)[1].flatten(), short)


def test_held_out_batches_cover_the_split(text):
    source = TextFile(source="file", path=text)
    size = len(source.content("test"))
    seen = torch.cat([source.batch("test", step, 0, 4, 16)[0] for step in range(64)]).flatten()
    whole = source.content("test").tolist()
    # 64 evenly spread spans of 64 bytes over 1000 cover every window of 128 bytes
    rows = bytes(seen.tolist())
    missed = [
        start for start in range(0, size - 128, 128) if bytes(whole[start + 60 : start + 64]) not in rows
    ]
    assert not missed


def test_a_split_shorter_than_a_batch_wraps(text):
    source = TextFile(source="file", path=text)
    batch = source.batch("validation", 0, 0, 64, 100)
    for content, row in rows_of(source, "validation", batch):
        assert row in content


def test_fingerprint_follows_the_content(text):
    source = TextFile(source="file", path=text)
    before = source.fingerprint()
    content = bytearray(text.read_bytes())
    content[7] ^= 1
    text.write_bytes(content)
    os.utime(text, ns=(1, 1))
    assert source.fingerprint() != before


def broken_files(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"x" * 100)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return {
        "missing": "is not there",
        "empty": "is empty",
        "folder": "no file in .*folder holds any",
        "pipe": "a device, a pipe",
        "empty/below": "Not a directory",
        "n" * 300: "name too long",
        "short": r"test part of .* holds 5 bytes, but a length of 64 needs at least 66",
    }


def test_errors_name_the_file_and_the_fault(tmp_path):
    for name, fault in broken_files(tmp_path).items():
        source = TextFile(source="file", path=tmp_path / name)
        with pytest.raises(ValueError, match=fault) as caught:
            source.check("test", 64)
        assert name in str(caught.value)


def test_a_cap_that_empties_a_split_is_refused():
    with pytest.raises(ValueError, match="raise `mib`"):
        StandardLibrary(mib=0.01).check("validation", 64)
