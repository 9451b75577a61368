"""A file or folder of text as token ids."""

import functools
import json
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_serializer
from torch import Tensor

from flagformer.lab.data import SPLITS, Split, short_hash
from flagformer.lab.data.encoded import Encoded, character_border, load_encoded
from flagformer.lab.data.file import EDGES, FIELD, FILTER, bytes_of, content_hash
from flagformer.lab.data.record_files import Condition
from flagformer.lab.data.text import Text


class TokenFile(Text):
    """The UTF-8 text at `path` as tokens of `tokenizer`, a `tokenizer.json` of the package `tokenizers`
    (`flagformer[tokenizers]`). Splits are those of `source: file`, moved to the next character.

    The text is encoded once, without special tokens, truncation, padding or BPE dropout, and cached in
    `FLAGFORMER_CACHE/tokens` (by default `~/.cache/flagformer/tokens`), which every process maps. The tokens
    of a split are those of one call for the whole split.

    Bits per byte count the bytes of the scored tokens, so that tokenizers can be compared with each other and
    with bytes. If the tokens do not decode to the text (unknown words, lower case, stripped spaces), accuracy
    and nats per token are reported instead, with a warning. One space at the start of a split, which
    tokenizers add or remove, does not count.
    """

    metric: ClassVar[str] = "every token given those before it; accuracy: the share predicted right"

    source: Literal["tokens"]
    path: Path = Field(description="A file or a folder; a relative path starts at the working directory.")
    tokenizer: Path = Field(description="A tokenizer.json.")
    field: str | None = Field(default=None, description=FIELD)
    filter: dict[str, Condition] = Field(default={}, description=FILTER)

    @model_serializer(mode="wrap")
    def _without_no_filter(self, dump: Any) -> dict[str, Any]:
        """Without conditions, settings are those of earlier versions."""
        return {key: value for key, value in dump(self).items() if key != "filter" or value}

    @property
    def label(self) -> str:
        return f"{self.path} in tokens"

    @property
    def num_tokens(self) -> int:
        """The largest id plus one: ids may have gaps, and added tokens may exceed the vocabulary."""
        return 1 + largest_id(self.tokenizer)

    @property
    def is_bytes(self) -> bool:
        try:
            return all(part.lossless for part in self._encoded())
        except (OSError, ValueError):  # a report needs only results; the text may be missing
            return True

    def check(self, split: Split, seq_len: int) -> None:
        super().check(split, seq_len)
        if not self.is_bytes:
            invalid = next((part.invalid for part in self._encoded() if part.invalid is not None), None)
            message = _LOSSY if invalid is None else _NOT_UTF8
            warnings.warn(message.format(self.tokenizer, self.path, invalid), stacklevel=2)

    def bytes_per_token(self, split: Split) -> float | None:
        """The mean over the split; None if the tokens do not decode to the text."""
        part = self._part(split)
        return int(part.sizes.sum()) / max(1, len(part.sizes)) if part.lossless else None

    def content(self, split: Split) -> Tensor:
        return self._part(split).ids

    def sizes(self, split: Split) -> Tensor | None:
        part = self._part(split)
        return part.sizes if part.lossless else None

    def fingerprint(self) -> str:
        content = f"{content_hash(self.path, self.field, self._conditions)} {hash_tokenizer(self.tokenizer)}"
        return short_hash(content.encode())

    @property
    def _conditions(self) -> str:
        return json.dumps(self.filter)

    def _part(self, split: Split) -> Encoded:
        return self._encoded()[SPLITS.index(split)]

    def _encoded(self) -> list[Encoded]:
        text, tokenizer = bytes_of(self.path, self.field, self._conditions), read_tokenizer(self.tokenizer)
        return load_encoded(text, _spans(text), tokenizer, self.fingerprint())


_LOSSY = (
    "the tokens of {} do not decode to the text of {} (unknown words, or a normalizer that changes it), so "
    "bits per byte are left out"
)
_NOT_UTF8 = (
    "the text of {1} is not UTF-8 (first at byte {2}), so the tokens of {0} do not decode to it and bits per "
    "byte are left out; convert it (for Latin-1: iconv -f ISO-8859-1 -t UTF-8 FILE)"
)


def _spans(text: Tensor) -> tuple[tuple[int, int], ...]:
    """The first and last byte of each split; no character is cut."""
    size = len(text)
    ends = [character_border(text, int(EDGES[split][1] * size), size) for split in SPLITS[:-1]]
    return tuple(zip((0, *ends), (*ends, len(text))))


def largest_id(tokenizer: Path) -> int:
    """The largest id of a tokenizer, with added tokens."""
    found: int = _largest_id(tokenizer, *_stamp(tokenizer))
    return found


def hash_tokenizer(path: Path) -> str:
    """A short hash of a tokenizer.json; ValueError if it is not there."""
    return _hashed(path, *_stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a tokenizer.json, part of cache keys, so that a changed file is read again."""
    read_tokenizer(path)  # its error names the path
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _hashed(path: Path, size: int, modified: int) -> str:
    return short_hash(path.read_bytes())


@functools.lru_cache(maxsize=4)
def _largest_id(path: Path, size: int, modified: int) -> int:
    return max(read_tokenizer(path).get_vocab(with_added_tokens=True).values())


@functools.lru_cache(maxsize=2)
def read_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError("`source: tokens` needs a package: pip install 'flagformer[tokenizers]'") from None
    if not path.is_file():
        raise ValueError(
            f"`tokenizer` must be a tokenizer.json, but {path} is not there (seen from {Path.cwd()})"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises this class
        raise ValueError(f"`tokenizer` must be a tokenizer.json, but {path} is none: {error}") from None
    tokenizer.no_truncation()  # the file may enable both, for batches of sentences
    tokenizer.no_padding()
    tokenizer.post_processor = None  # it adds special tokens, or removes spaces from offsets
    for sampling in ("dropout", "alpha", "nbest_size"):  # subword regularisation of BPE and Unigram
        if getattr(tokenizer.model, sampling, None) is not None:
            setattr(tokenizer.model, sampling, None)
    return tokenizer
