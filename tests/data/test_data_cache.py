"""Cached tokens are encoded once for all processes, and incomplete files are never read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from flagformer.lab.data import encoded, lock
from flagformer.lab.data.tokens import TokenFile

tokenizers = pytest.importorskip("tokenizers")
TEXT = "of the people, by the people, for the people; " * 200
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenFile:
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    (tmp_path / "text").write_text(TEXT)
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([""], vocab_size=256, show_progress=False)  # a token for each byte
    made.save(str(tmp_path / "tokenizer.json"))
    return TokenFile(source="tokens", path=tmp_path / "text", tokenizer=tmp_path / "tokenizer.json")


def files(source: TokenFile) -> list[str]:
    return sorted(path.suffix for path in (source.path.parent / "cache" / "tokens").iterdir())


def slowly(report: Path) -> Any:
    """An encoding that reports its begin and end, and is slow enough to be interrupted."""
    whole = encoded._encode_span

    def encode(*given: Any) -> Any:
        with report.open("a") as file:
            file.write("begin\n")
        time.sleep(0.05)
        made = whole(*given)
        with report.open("a") as file:
            file.write("end\n")
        return made

    return encode


def load(source: TokenFile, report: Path) -> None:
    encoded._encode_span = slowly(report)  # type: ignore[assignment]
    if source.content("train").numel() != int(0.9 * len(TEXT)):
        raise SystemExit(3)


def test_one_of_several_processes_encodes(source: TokenFile, tmp_path: Path) -> None:
    report = tmp_path / "report"
    found = [FORK.Process(target=load, args=(source, report)) for _ in range(4)]
    for process in found:
        process.start()
    for process in found:
        process.join()
    assert [process.exitcode for process in found] == [0] * 4
    assert report.read_text().split() == ["begin", "end"] * 3  # one for each split
    assert files(source) == [".bin", ".json", ".lock"]


def stop_amid(source: TokenFile, report: Path) -> None:
    def stop(text: Any, low: int, high: int, tokenizer: Any, file: Any) -> Any:
        file.write(b"half")
        file.flush()
        report.write_text("stopped")
        signal.pause()

    encoded._encode_span = stop
    source.content("train")


def test_a_killed_process_does_not_block_others(source: TokenFile, tmp_path: Path) -> None:
    report = tmp_path / "report"
    process = FORK.Process(target=stop_amid, args=(source, report))
    process.start()
    while not report.exists():
        assert process.is_alive()
        time.sleep(0.01)
    assert files(source) == [".lock", ".partial"]
    process.kill()
    process.join()
    assert source.content("train").numel() == int(0.9 * len(TEXT))
    assert files(source) == [".bin", ".json", ".lock"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "removed"])
@pytest.mark.parametrize("name", ["bin", "json"])
def test_incomplete_files_are_encoded_again(source: TokenFile, name: str, damage: Any) -> None:
    ids = source.content("train").tolist()
    [path] = (source.path.parent / "cache" / "tokens").glob(f"*.{name}")
    held = path.read_bytes()
    damage(path)
    encoded._read.cache_clear()
    assert source.content("train").tolist() == ids
    assert path.read_bytes() == held


def test_a_full_disk_is_named_and_leaves_no_file(source: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(ValueError, match=r"`FLAGFORMER_CACHE` must be .*No space left"):
            source.content("train")
    assert files(source) == [".lock"]
    assert source.content("train").numel() == int(0.9 * len(TEXT))


def test_a_complete_cache_can_be_read_only(source: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = source.content("train").tolist()
    encoded._read.cache_clear()
    monkeypatch.setattr(lock, "exclusive", lambda _: pytest.fail("writes to the cache"))
    assert source.content("train").tolist() == ids
