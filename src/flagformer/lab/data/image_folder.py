"""Images of a folder, one folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flagformer.lab.data import Form, Source, Split, short_hash
from flagformer.lab.data.cache import hash_of_files
from flagformer.lab.data.image_files import Images, image_files, load_images
from flagformer.lab.data.opened import opened_once
from flagformer.lab.data.order import numbers_of_split, rows_of_batch


class ImageFolder(Source):
    """Images of `path/CLASS/`, or of `path/train/CLASS/`, `path/val/CLASS/` and `path/test/CLASS/`, for
    `model: vit`; classes are the names of the folders, sorted.

    A row is the middle square of an image, resized to [channels, size, size], with values from 0 to 1. Files
    are decoded once by Pillow and cached in `FLAGFORMER_CACHE/images`, which every process maps. Without
    folders of splits a hash of its file assigns an image to a split. `seq_len` is the number of pixels.
    """

    metric: ClassVar[str] = "the class of an image; accuracy: the share predicted right"
    form: ClassVar[Form] = "images"

    source: Literal["image_folder"]
    path: Path = Field(description="A folder with a folder of images for each class.")
    size: int = Field(default=32, ge=2, le=4096, description="Height and width of an image in pixels.")
    channels: Literal[1, 3] = Field(default=3, description="3: red, green, blue; 1: grey.")

    @model_validator(mode="before")
    @classmethod
    def _length_is_the_pixels(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        size = given.get("size", 32)
        pixels = size * size if isinstance(size, int) else 4
        if given.get("seq_len", pixels) != pixels:
            raise ValueError(f"`seq_len` must be {pixels}, the pixels of an image, or left out")
        return {**given, "seq_len": pixels}

    @property
    def num_tokens(self) -> int:
        return len(self._opened().names)

    @property
    def chance(self) -> float | None:
        return 1 / self.num_tokens

    @property
    def model(self) -> str:
        return "vit"

    @property
    def image(self) -> dict[str, int]:
        return {"image_size": self.size, "channels": self.channels}

    def example(self, rows: int, seq_len: int) -> Tensor:
        return torch.zeros(rows, self.channels, self.size, self.size)

    def check(self, split: Split, seq_len: int) -> None:
        if seq_len != self.size**2:
            raise ValueError(
                f"`seq_lens` must be [{self.size**2}], the pixels of an image, but has {seq_len}"
            )
        if not len(self._numbers(split)):
            raise ValueError(
                f"the {split} part of {self.path} has no image; give more images, or folders train, val and "
                "test"
            )

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """fp32 [batch_size, channels, size, size], and classes [batch_size, 1]."""
        self.check(split, seq_len)
        found, numbers = self._opened(), self._numbers(split)
        which = numbers[rows_of_batch(len(numbers), split, step, seed, batch_size)]
        pixels = torch.from_numpy(found.pixels[which])
        return pixels.float() / 255, torch.from_numpy(found.classes[which])[:, None]

    def fingerprint(self) -> str:
        files = [one.path for one in image_files(self.path)]
        names = [path.relative_to(self.path).as_posix() for path in files]
        settings = self.model_dump_json(exclude={"path", "seq_len"})
        return short_hash(f"{settings} {names} {hash_of_files(files)}".encode())

    def _opened(self) -> Images:
        found: Images = opened_once(self, [self.path], self._load)
        return found

    def _load(self) -> Images:
        return load_images(self.fingerprint(), image_files(self.path), self.size, self.channels)

    def _numbers(self, split: Split) -> Any:
        found = self._opened()
        by = "hash" if found.files is None else "files"
        return numbers_of_split(split, len(found.classes), by, found.hashes, found.files)
