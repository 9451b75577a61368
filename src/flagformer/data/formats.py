"""Files that hold no plain text are recognised by their content and refused, each with what to do instead."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

HEAD = 1 << 16  # bytes that are looked at in each of a few places
PLACES = 5
MOST_NUL = 1 / 1024  # text has no NUL; compressed bytes have one in 256, token ids one in two to eight

UNPACK = "decompress it first ({})"
COLUMN = "write the column of text to a .jsonl file and name it in `field`"
MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip", UNPACK.format("gunzip --keep FILE")),
    (b"\x28\xb5\x2f\xfd", "Zstandard", UNPACK.format("unzstd FILE")),
    (b"BZh", "bzip2", UNPACK.format("bunzip2 --keep FILE")),
    (b"\xfd7zXZ\x00", "xz", UNPACK.format("unxz --keep FILE")),
    (b"\x04\x22\x4d\x18", "LZ4", UNPACK.format("unlz4 FILE")),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", UNPACK.format("7z x FILE")),
    (b"PK\x03\x04", "zip (or .npz, .pt, .docx)", "unpack it first (unzip FILE)"),
    (b"PAR1", "Parquet", COLUMN),
    (b"ARROW1", "Arrow", COLUMN),
    (b"ORC", "ORC", COLUMN),
    (b"\x89HDF", "HDF5", COLUMN),
    (b"SQLite format 3\x00", "SQLite", COLUMN),
    (b"\x93NUMPY", "NumPy", "give the text that it was made of; arrays of token ids are not read"),
    (b"\x80\x02", "pickle", "give a file of text; pickles are never opened"),
    (b"\x80\x03", "pickle", "give a file of text; pickles are never opened"),
    (b"\x80\x04", "pickle", "give a file of text; pickles are never opened"),
    (b"\x80\x05", "pickle", "give a file of text; pickles are never opened"),
    (b"GGUF", "GGUF", "give a file of text; this one holds a model"),
    (b"MMIDIDX\x00", "Megatron index", "give the text that it was made of"),
    (b"%PDF-", "PDF", "extract its text first (pdftotext FILE)"),
    (b"\xff\xfe\x00\x00", "UTF-32", "convert it (iconv -f UTF-32 -t UTF-8 FILE)"),
    (b"\x00\x00\xfe\xff", "UTF-32", "convert it (iconv -f UTF-32 -t UTF-8 FILE)"),
    (b"\xff\xfe", "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8 FILE)"),
    (b"\xfe\xff", "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8 FILE)"),
)

PRINTABLE = (b"BZh", b"PAR1", b"ARROW1", b"ORC", b"GGUF")  # a text can begin with these letters


def refuse_binary(path: Path, content: Tensor) -> None:
    """Raises ValueError, naming the file and its format, where uint8 `content` is no text.

    Invalid UTF-8 is allowed: models of bytes read any encoding that holds one byte for an ASCII character.
    """
    head = content[:HEAD].numpy().tobytes()
    binary = _share_of_nul(content) > MOST_NUL
    name, advice = binary_format(head, len(content), binary)
    if name:
        raise ValueError(f"`path` must be a file of text, but {path} is a {name} file{advice}")
    if b'"added_tokens"' in head and b'"model"' in head + _tail(content) and head.lstrip()[:1] == b"{":
        raise ValueError(
            f"`path` must be a file of text, but {path} is a tokenizer.json; name it in `tokenizer`"
        )
    if binary:
        raise ValueError(
            f"`path` must be a file of text, but {path} is binary (many of its bytes are 0, as in arrays of "
            "token ids and in UTF-16); give UTF-8 text"
        )


def binary_format(head: bytes, size: int, binary: bool) -> tuple[str, str]:
    """The name of the format that the first bytes of a file of `size` bytes tell, and what to do; empty for
    others. `binary`: whether it holds more bytes 0 than text does."""
    for magic, name, advice in MAGIC:
        if head.startswith(magic) and (binary or magic not in PRINTABLE):
            return name, f"; {advice}"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < size:
        return "safetensors", ": a model's weights"
    return "", ""


def _share_of_nul(content: Tensor) -> float:
    """Of samples from the whole content."""
    samples = [content[at : at + HEAD] for at in _places(len(content))]
    return sum(int((part == 0).sum()) for part in samples) / max(1, sum(map(len, samples)))


def _places(size: int) -> list[int]:
    last = max(0, size - HEAD)
    return sorted({last * number // (PLACES - 1) for number in range(PLACES)})


def _tail(content: Tensor) -> bytes:
    return content[-HEAD:].numpy().tobytes()
