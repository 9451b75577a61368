"""Downloads from a local server: checked, cached, complete or absent; the error explains offline use."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagformer.lab.data import download
from flagformer.lab.data.download import Enwik8, Text8, fetch

TEXT = b"of the people by the people for the people " * 100


def archive(name: str = "enwik8") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo(name), TEXT)
    return buffer.getvalue()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory served by a local server, which is the mirror."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *how: object) -> None:
            super().__init__(*how, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *what: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("FLAGFORMER_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_text_is_fetched_once_and_checked(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served / "enwik8.zip").write_bytes(archive())
    monkeypatch.setattr(download, "SIZE", len(TEXT))
    monkeypatch.setattr(Enwik8, "archive_sha256", hashlib.sha256(archive()).hexdigest())
    edges = {"train": (0, 3000), "validation": (3000, 3500), "test": (3500, len(TEXT))}
    monkeypatch.setattr(download, "EDGES", edges)
    source = Enwik8(source="enwik8", seq_len=16)
    source.check("train", 16)
    (served / "enwik8.zip").unlink()  # from here on only the cache has it
    assert bytes(source.content("test").tolist()) == TEXT[3500:]
    inputs, targets = source.batch("train", 0, 0, 4, 16)
    assert inputs.shape == targets.shape == (4, 16)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["enwik8"]


def test_another_archive_is_refused_and_not_stored(served: Path, tmp_path: Path) -> None:
    (served / "text8.zip").write_bytes(archive("text8"))
    with pytest.raises(ValueError, match=r"is not the known archive .*put text8.zip in a directory"):
        Text8(source="text8").check("train", 16)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_offline_error_explains_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLAGFORMER_MIRROR", "http://127.0.0.1:9")  # no server listens there
    with pytest.raises(
        ValueError, match=r"could not be fetched from http://127.0.0.1:9/enwik8.zip.*stdlib. needs no"
    ):
        Enwik8(source="enwik8").check("train", 16)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_missing_on_the_server(served: Path) -> None:
    with pytest.raises(ValueError, match="could not be fetched"):
        Text8(source="text8").check("train", 16)


def test_a_mirror_can_be_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "text8.zip").write_bytes(archive("text8"))
    monkeypatch.setenv("FLAGFORMER_MIRROR", str(tmp_path / "mirror"))
    fetch("text8", hashlib.sha256(archive("text8")).hexdigest(), tmp_path / "cache")
    assert (tmp_path / "cache" / "text8").read_bytes() == TEXT


def test_a_truncated_archive_is_refused(served: Path, tmp_path: Path) -> None:
    (served / "text8.zip").write_bytes(archive("text8")[:-40])
    with pytest.raises(ValueError, match="is not the known archive"):
        fetch("text8", hashlib.sha256(archive("text8")).hexdigest(), tmp_path / "cache")
