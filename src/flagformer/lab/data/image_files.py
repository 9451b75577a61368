"""Images of a folder, by class, as one array of the cache: decoded once, memory-mapped by every process."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flagformer.lab.data.cache import cache_directory, writing_to
from flagformer.lab.data.lock import made_once
from flagformer.lab.data.shards import NAMES
from flagformer.lab.data.token_store import named_splits

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VERSION = 1  # of the files; a new number invalidates the cache


@dataclass(frozen=True)
class ImageFile:
    """One image.

    Attributes:
        label: the name of its class.
        split: the index of the split that its folder names; None if folders name none.
    """

    path: Path
    label: str
    split: int | None


@dataclass(frozen=True, eq=False)
class Images:
    """All images of a folder.

    Attributes:
        pixels: uint8 [N, C, H, W].
        classes: int64 [N], indices of `names`.
        hashes: uint64 [N], of the files.
        files: the split of each image, as in `Collection.files`; None: folders name no splits.
    """

    pixels: Any
    classes: Any
    hashes: Any
    files: Any
    names: tuple[str, ...]


def image_files(root: Path) -> list[ImageFile]:
    """The images of `root/CLASS` or `root/SPLIT/CLASS`, without hidden ones, in the order of their paths.

    Raises:
        ValueError: there are no images, or images outside of the folder of a class.
    """
    if not root.is_dir():
        why = "is a file" if root.exists() else f"is not there (seen from {Path.cwd()})"
        raise ValueError(f"`path` must be a folder with a folder of images for each class, but {root} {why}")
    inside = sorted((path.relative_to(root), path) for path in root.rglob("*"))
    shown = [(name, path) for name, path in inside if not any(part[0] == "." for part in name.parts)]
    images = [(name, path) for name, path in shown if name.suffix.lower() in SUFFIXES and path.is_file()]
    if not images:
        raise ValueError(
            f"`path` must be a folder with a folder of images for each class, but {root} has no file that "
            f"ends in {', '.join(SUFFIXES)}"
        )
    splits = {name.parts[0]: _split_of(name.parts[0]) for name, _ in images}
    by_split = 0 in splits.values() and None not in splits.values()
    depth = 3 if by_split else 2
    outside = next((path for name, path in images if len(name.parts) < depth), None)
    if outside is not None:
        raise ValueError(f"`path` must have a folder for each class, but {outside} is in none")
    return [
        ImageFile(path, name.parts[depth - 2], splits[name.parts[0]] if by_split else None)
        for name, path in images
    ]


def load_images(key: str, files: Sequence[ImageFile], size: int, channels: int) -> Images:
    """The images under this key, from the cache; on first use they are decoded and written there.

    Raises:
        ValueError: an image is damaged, or the directory `FLAGFORMER_CACHE` is not writable.
    """
    folder = cache_directory() / "images" / f"{key}-{VERSION}"
    with writing_to(folder):
        lock = folder.with_name(f"{folder.name}.lock")
        made_once(folder, lock, (folder / "names.json").exists, lambda: _write(folder, files, size, channels))
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pixels", "classes", "hashes")
        }
        names = tuple(json.loads((folder / "names.json").read_text()))
    splits = [one.split for one in files]
    chosen = None if None in splits else named_splits(np.array(splits))
    return Images(**arrays, files=chosen, names=names)


def _write(folder: Path, files: Sequence[ImageFile], size: int, channels: int) -> None:
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}.partial")
    partial.mkdir()
    try:
        names = sorted({one.label for one in files})
        shape = (len(files), channels, size, size)
        pixels = np.lib.format.open_memmap(partial / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
        hashes = bytearray()
        for number, one in enumerate(files):
            pixels[number] = _decoded(one.path, size, channels)
            hashes += hashlib.blake2b(one.path.read_bytes(), digest_size=8).digest()
        pixels.flush()
        index = {name: number for number, name in enumerate(names)}
        np.save(partial / "classes.npy", np.array([index[one.label] for one in files], dtype=np.int64))
        np.save(partial / "hashes.npy", np.frombuffer(hashes, dtype="<u8"))
        (partial / "names.json").write_text(json.dumps(names))
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decoded(path: Path, size: int, channels: int) -> Any:
    """uint8 [C, size, size]: the middle square of an image, resized."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    except Exception as error:  # the package raises many classes for damaged files
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"`path` must be images, but {path} cannot be read: {text}") from None
    fitted = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def _split_of(name: str) -> int | None:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in NAMES.items() if words & set(known)), None)
