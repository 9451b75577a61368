"""enwik8 and text8: the first 10^8 bytes of Wikipedia, fetched once, checked, and kept in a cache
directory."""

import hashlib
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from flagformer.lab.data import Split, short_hash
from flagformer.lab.data.file import bytes_of
from flagformer.lab.data.text import Text

CACHE, MIRROR = "FLAGFORMER_CACHE", "FLAGFORMER_MIRROR"
HOME = "http://mattmahoney.net/dc"
SIZE = 100_000_000
PIECE = 1 << 20
PATIENCE = 30.0  # seconds without a byte
# the split of Mahoney's corpora that papers use: 90, 5 and 5 million bytes
EDGES: dict[Split, tuple[int, int]] = {
    "train": (0, 90_000_000),
    "validation": (90_000_000, 95_000_000),
    "test": (95_000_000, SIZE),
}


class Downloaded(Text):
    """A text that is fetched on first use from its home, or from the mirror that `FLAGFORMER_MIRROR` names (a
    URL or a directory that holds the archive). It is kept in `FLAGFORMER_CACHE`, by default
    `~/.cache/flagformer`. The archive's SHA-256 is checked before anything is unpacked.
    """

    archive_sha256: ClassVar[str]

    @property
    def place(self) -> str:
        return str(self.model_dump()["source"])

    def content(self, split: Split) -> Tensor:
        low, high = EDGES[split]
        return bytes_of(self._path())[low:high]

    def fingerprint(self) -> str:
        return short_hash(f"{self.place} {self.archive_sha256}".encode())

    def _path(self) -> Path:
        folder = cache_directory()
        path = folder / self.place
        if not (path.is_file() and path.stat().st_size == SIZE):
            fetch(self.place, self.archive_sha256, folder)
        return path


class Enwik8(Downloaded):
    """The first 10^8 bytes of the English Wikipedia's XML of 2006-03-03
    (mattmahoney.net/dc/textdata.html)."""

    source: Literal["enwik8"]
    archive_sha256: ClassVar[str] = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"


class Text8(Downloaded):
    """The same text cleaned to the letters a to z and single spaces, its first 10^8 bytes."""

    source: Literal["text8"]
    archive_sha256: ClassVar[str] = "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"


def cache_directory() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "flagformer")


def fetch(name: str, sha256: str, folder: Path) -> None:
    """Fetches `NAME.zip`, checks it and leaves the text `NAME` in `folder`, whole or not at all.

    Raises:
        ValueError: it cannot be had (offline), or it is not what it should be; says where to put it by hand.
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
            while piece := inside.read(PIECE):
                file.write(piece)
        fresh.replace(folder / name)
    except (urllib.error.URLError, TimeoutError, ConnectionError, FileNotFoundError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"`source: {name}` could not be fetched from {url}: {reason}; {by_hand}") from error
    finally:
        archive.unlink(missing_ok=True)
        fresh.unlink(missing_ok=True)


def _save(url: str, path: Path) -> str:
    """Copies a URL, or a file where the mirror is a directory, to `path`; returns its SHA-256."""
    digest = hashlib.sha256()
    local = "://" not in url
    opened = Path(url).open("rb") if local else urllib.request.urlopen(url, timeout=PATIENCE)  # noqa: SIM115
    with opened as source, path.open("wb") as file:
        while piece := source.read(PIECE):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()
