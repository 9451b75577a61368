"""enwik8 and text8: the first 10^8 bytes of Wikipedia, downloaded once and cached."""

import hashlib
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from flagformer.lab.data import Split, short_hash
from flagformer.lab.data.cache import cache_directory
from flagformer.lab.data.file import bytes_of
from flagformer.lab.data.text import Text

MIRROR = "FLAGFORMER_MIRROR"
HOME = "http://mattmahoney.net/dc"
SIZE = 100_000_000
PATIENCE = 30.0  # seconds without a byte
# the usual split of these corpora in papers: 90, 5 and 5 million bytes
EDGES: dict[Split, tuple[int, int]] = {
    "train": (0, 90_000_000),
    "validation": (90_000_000, 95_000_000),
    "test": (95_000_000, SIZE),
}


class Downloaded(Text):
    """A text that is downloaded on first use from its origin, or from the mirror in `FLAGFORMER_MIRROR` (a
    URL or a directory with the archive), and cached in `FLAGFORMER_CACHE`, by default `~/.cache/flagformer`.
    The SHA-256 of the archive is checked before it is unpacked.
    """

    archive_sha256: ClassVar[str]

    @property
    def label(self) -> str:
        return str(self.model_dump()["source"])

    def content(self, split: Split) -> Tensor:
        low, high = EDGES[split]
        return bytes_of(self._path())[low:high]

    def fingerprint(self) -> str:
        return short_hash(f"{self.label} {self.archive_sha256}".encode())

    def _path(self) -> Path:
        folder = cache_directory()
        path = folder / self.label
        if not (path.is_file() and path.stat().st_size == SIZE):
            fetch(self.label, self.archive_sha256, folder)
        return path


class Enwik8(Downloaded):
    """The first 10^8 bytes of the English Wikipedia's XML of 2006-03-03
    (mattmahoney.net/dc/textdata.html)."""

    source: Literal["enwik8"]
    archive_sha256: ClassVar[str] = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"


class Text8(Downloaded):
    """The first 10^8 bytes of the same text, cleaned to the letters a to z and single spaces."""

    source: Literal["text8"]
    archive_sha256: ClassVar[str] = "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"


def fetch(name: str, sha256: str, folder: Path) -> None:
    """Download `NAME.zip`, check it and write the text `NAME` to `folder` atomically.

    Raises:
        ValueError: the download failed or its SHA-256 is wrong; the message explains the manual download.
    """
    home = os.environ.get(MIRROR) or HOME
    url = f"{home.rstrip('/')}/{name}.zip"
    folder.mkdir(parents=True, exist_ok=True)
    archive, fresh = folder / f"{name}.zip.{os.getpid()}", folder / f"{name}.{os.getpid()}"
    by_hand = (
        f"put {name}.zip in a directory and name it in {MIRROR}, or the unpacked file at {folder / name}; "
        "`source: stdlib` needs no download"
    )
    try:
        found = _save(url, archive)
        if found != sha256:
            raise ValueError(
                f"`source: {name}`: {url} is not the known archive (SHA-256 {found[:16]}..., wanted "
                f"{sha256[:16]}...); "
                f"{by_hand}"
            )
        with zipfile.ZipFile(archive) as packed, packed.open(name) as inside, fresh.open("wb") as file:
            shutil.copyfileobj(inside, file)
        fresh.replace(folder / name)
    except (urllib.error.URLError, TimeoutError, ConnectionError, FileNotFoundError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"`source: {name}` could not be fetched from {url}: {reason}; {by_hand}") from error
    finally:
        archive.unlink(missing_ok=True)
        fresh.unlink(missing_ok=True)


def _save(url: str, path: Path) -> str:
    """Copy a URL, or a file of a mirror directory, to `path`; return its SHA-256."""
    local = "://" not in url
    opened = Path(url).open("rb") if local else urllib.request.urlopen(url, timeout=PATIENCE)  # noqa: SIM115
    with opened as source, path.open("w+b") as file:
        shutil.copyfileobj(source, file)
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
