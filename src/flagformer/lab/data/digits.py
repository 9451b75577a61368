"""The digits of scikit-learn: 1,797 images of 8 x 8 pixels, part of the package."""

import functools
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import Form, Source, Split, draws, short_hash

PIXELS, CLASSES, GREYS = 8, 10, 16.0
HELD_OUT_EVERY = 10  # of 10 images in order, one goes to validation and one to test


class Digits(Source):
    """Images of handwritten digits for `model: vit` with `image_size: 8, channels: 1, num_classes: 10`; needs
    scikit-learn (`flagformer[images]`).

    A row is an image [1, 8, 8] with values from 0 to 1; its target is one class. `seq_len` is 64, its pixels.
    """

    metric: ClassVar[str] = "the digit of an image; accuracy: the share predicted right; chance: 1 / 10"
    form: ClassVar[Form] = "images"

    source: Literal["digits"]
    seq_len: Literal[64] = Field(default=64, description="Pixels of an image.")

    @property
    def num_tokens(self) -> int:
        return CLASSES

    @property
    def chance(self) -> float | None:
        return 1 / CLASSES

    @property
    def model(self) -> str:
        return "vit"

    @property
    def image(self) -> dict[str, int]:
        """The size of an image, as flags of a vision transformer."""
        return {"image_size": PIXELS, "channels": 1}

    def example(self, rows: int, seq_len: int) -> Tensor:
        return torch.zeros(rows, 1, PIXELS, PIXELS)

    def check(self, split: Split, seq_len: int) -> None:
        if seq_len != PIXELS**2:
            raise ValueError(
                f"`seq_lens` must be [64], the pixels of an image of digits, but holds {seq_len}"
            )
        _load()

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Training images are drawn at random; held-out images are read in order, repeatedly."""
        images, classes = _load()[split]
        if split == "train":
            which = torch.randint(len(images), (batch_size,), generator=draws(split, seed, step))
        else:
            which = (step * batch_size + torch.arange(batch_size)) % len(images)
        return images[which], classes[which, None]

    def fingerprint(self) -> str:
        return short_hash(b"".join(images.numpy().tobytes() for images, _ in _load().values()))


@functools.lru_cache(maxsize=1)
def _load() -> dict[Split, tuple[Tensor, Tensor]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("`source: digits` needs scikit-learn: pip install 'flagformer[images]'") from None
    bunch = load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / GREYS  # [N, 1, 8, 8]
    classes = torch.as_tensor(bunch.target).long()
    index = torch.arange(len(images)) % HELD_OUT_EVERY
    chosen: dict[Split, Tensor] = {
        "train": (index != 4) & (index != 9),
        "validation": index == 4,
        "test": index == 9,
    }
    return {split: (images[which], classes[which]) for split, which in chosen.items()}
