"""The source files of the installed Python's standard library, a text that exists on every machine."""

import functools
import os
import sysconfig
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import SPLITS, Split, short_hash
from flagformer.lab.data.text import Text

# Installed packages and byte code are not part of the library; not every distribution has tests; the others
# are tables.
LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
}
HELD_OUT_EVERY = 20  # of 20 files in order, one goes to validation and one to test


class StandardLibrary(Text):
    """Bytes of the standard library's `.py` files in order of their paths, up to `mib` MiB in whole files.

    The splits consist of different files: one of every 20 is for validation and one for test. The text
    depends on the Python version, so a trial records its fingerprint.
    """

    source: Literal["stdlib"] = "stdlib"
    mib: float = Field(
        default=6.0,
        gt=0,
        le=1024,
        description="Largest size of all splits together, in MiB of whole files.",
    )

    @property
    def label(self) -> str:
        return f"Python's standard library (mib={self.mib:g})"

    def content(self, split: Split) -> Tensor:
        return _read(self.mib)[split]

    def fingerprint(self) -> str:
        return short_hash(b"".join(_read(self.mib)[split].numpy().data for split in SPLITS))


def sources(root: Path) -> list[Path]:
    """The files of the library, sorted by path."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        # _sysconfigdata*.py is written by the build and differs between machines of one version
        found += [
            Path(folder, name)
            for name in files
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


@functools.lru_cache(maxsize=2)
def _read(mib: float) -> dict[Split, Tensor]:
    root = Path(sysconfig.get_path("stdlib"))
    parts: dict[Split, bytearray] = {split: bytearray() for split in SPLITS}
    left = int(mib * 2**20)
    for number, path in enumerate(sources(root)):
        content = path.read_bytes()
        left -= len(content)
        if left < 0:
            break
        index = number % HELD_OUT_EVERY
        parts["validation" if index == 9 else "test" if index == 19 else "train"] += content
    for split, part in parts.items():
        if not part:
            raise ValueError(
                f"the {split} part of Python's standard library is empty: {root} holds too few .py files "
                f"within `mib` = {mib:g}; raise `mib`, or use `source: file` with a text of your own"
            )
    return {split: torch.frombuffer(part, dtype=torch.uint8) for split, part in parts.items()}
