"""The tokens of a model's texts: bytes, a tokenizer.json, or a tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from flagformer.lab.data.text import BYTES
from flagformer.lab.data.tokens import read_tokenizer

NEWLINE = "\n"
PRINTABLE = "".join(map(chr, range(32, 127)))


class Tokens(Protocol):
    """Texts as token ids.

    Attributes:
        name: a description.
        prefix: the id before the first token of a text.
        end: the id that ends a text, or None.
    """

    name: str
    prefix: int
    end: int | None

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text; `special`: with the tokens that the tokenizer adds, such as one at the start."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


class ByteTokens:
    """The bytes of UTF-8. A newline precedes the first byte of a text."""

    name: str = "bytes"
    prefix: int = ord(NEWLINE)
    end: int | None = None

    def encode(self, text: str, special: bool) -> list[int]:
        return list(text.encode(errors="surrogateescape"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class FileTokens:
    """The tokens of a tokenizer.json as a training reads them, without special tokens.

    Raises:
        ValueError: for a tokenizer that gives no token for a newline, which precedes the first of a text.
    """

    end: int | None = None

    def __init__(self, path: Path) -> None:
        self.tokenizer, self.name = read_tokenizer(path), str(path)
        newline = self.encode(NEWLINE, special=False)
        if not newline:
            raise ValueError(f"`--tokenizer` must have a token for a newline, but {path} has none")
        self.prefix = newline[-1]

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids))
        return text


class PretrainedTokens:
    """The tokens of a tokenizer of transformers: its beginning of a text, or else its end, is the prefix."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.end: int | None = tokenizer.eos_token_id
        begin = tokenizer.bos_token_id
        first = self.end if begin is None else begin
        if first is None:
            raise ValueError(
                f"the tokenizer of {name} must have a token for the beginning or the end of a text "
                "(`bos_token`, `eos_token`), but has none"
            )
        self.prefix: int = first
        self.begin: str | None = tokenizer.bos_token

    def encode(self, text: str, special: bool) -> list[int]:
        special = special and not (self.begin and text.startswith(self.begin))
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


def tokens_of(num_tokens: int, folder: Path, run: Path, given: Path | None = None) -> Tokens:
    """The tokens of a model.

    Args:
        num_tokens: the size of its vocabulary.
        folder: the directory of the model, which may hold a tokenizer.
        run: the directory of a training, whose data may name a tokenizer.
        given: a tokenizer.json, or a directory with a tokenizer of transformers, in place of both.

    Raises:
        ValueError: for a tokenizer that cannot be read, has more tokens than the model, or is not known.
    """
    found = _named_tokens(folder, run) if given is None else _read(given)
    if found is None and num_tokens == BYTES:
        found = ByteTokens()
    if found is None:
        raise ValueError(
            f"`--tokenizer` must be given: the model reads {num_tokens} tokens, which are not bytes (256), "
            f"and {folder} has no tokenizer"
        )
    largest = max([found.prefix, *found.encode(PRINTABLE, special=True)])
    if largest >= num_tokens:
        raise ValueError(
            f"the tokenizer {found.name} must be that of the model, but has the id {largest}, and the model "
            f"reads {num_tokens} tokens"
        )
    return found


def _named_tokens(folder: Path, run: Path) -> Tokens | None:
    from flagformer.lab.train.result import read_settings

    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return _read(folder)
    path = run / "trial.json"
    data = read_settings(path).get("data", {}) if path.is_file() else {}
    return _read(Path(data["tokenizer"])) if data.get("source") == "tokens" else None


def _read(path: Path) -> Tokens:
    if not path.is_dir():
        return FileTokens(path)
    if not (path / "config.json").is_file() and (path / "tokenizer.json").is_file():
        return FileTokens(path / "tokenizer.json")
    from flagformer.interop.hugging_face.pretrained import load_transformers

    try:
        tokenizer = load_transformers().AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"transformers cannot read the tokenizer in {path}: {error}") from None
    return PretrainedTokens(tokenizer, str(path))
