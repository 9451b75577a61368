"""Any file or folder of text, as the tokens of a tokenizer."""

import functools
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.data import Split, short_hash
from flagformer.data.file import EDGES, bytes_of
from flagformer.data.text import Text

PIECE = 1 << 20  # bytes that are encoded at once


class TokenFile(Text):
    """The text at `path`, UTF-8, cut into the tokens of `tokenizer`, a `tokenizer.json` of the package
    `tokenizers` (the extra `flagformer[tokenizers]`). Splits are those of `source: file`, told apart before
    they are encoded.

    Bits per byte count the bytes that the tokens stand for, so that tokenizers and bytes compare.
    """

    metric: ClassVar[str] = "every token given those before it in its row; accuracy: the share guessed right"

    source: Literal["tokens"]
    path: Path = Field(description="A file or a folder; a relative path starts at the working directory.")
    tokenizer: Path = Field(description="A tokenizer.json.")

    @property
    def place(self) -> str:
        return f"{self.path} in tokens"

    @property
    def num_tokens(self) -> int:
        return int(_tokenizer(self.tokenizer).get_vocab_size())

    def bytes_per_token(self, split: Split) -> float:
        low, high = self._edges(split)
        return (high - low) / max(1, len(self.content(split)))

    def content(self, split: Split) -> Tensor:
        low, high = self._edges(split)
        return _encoded(self.path, self.tokenizer, low, high, short_hash(bytes_of(self.path).numpy().data))

    def fingerprint(self) -> str:
        text = short_hash(bytes_of(self.path).numpy().data)
        return short_hash(f"{text} {short_hash(self.tokenizer.read_bytes())}".encode())

    def _edges(self, split: Split) -> tuple[int, int]:
        size = len(bytes_of(self.path))
        low, high = EDGES[split]
        return int(low * size), int(high * size)


@functools.lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError("`source: tokens` needs a package: pip install 'flagformer[tokenizers]'") from None
    if not path.is_file():
        raise ValueError(
            f"`tokenizer` must be a tokenizer.json, but {path} is not there (seen from {Path.cwd()})"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"`tokenizer` must be a tokenizer.json, but {path} is none: {error}") from None


@functools.lru_cache(maxsize=6)
def _encoded(path: Path, tokenizer: Path, low: int, high: int, content: str) -> Tensor:
    """The tokens of some bytes; `content` is there so that a changed text is encoded anew."""
    text = bytes_of(path)
    ids: list[int] = []
    for start in range(low, high, PIECE):
        piece = text[start : min(start + PIECE, high)].numpy().tobytes().decode("utf-8", errors="replace")
        ids += _tokenizer(tokenizer).encode(piece, add_special_tokens=False).ids
    return torch.tensor(ids, dtype=torch.int32)
